"""`spark serve` as a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def serving(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run `command` in `folder`, at a free port instead of 8000, and yield its URL."""
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("w") as out:
        server = subprocess.Popen(
            ["0" if word == "8000" else word for word in command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=out,
            stderr=out,
        )
    try:
        while (told := re.search(r"listening on (http://\S+:\d+)\s", log.read_text())) is None:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield told[1]
        server.terminate()
        assert server.wait(30) in (0, -15)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.kill()
