"""`spark serve` as a process of its own, on a free port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spark.serve.server import bind

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def serving(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run `command` in `folder`, its port 8000 replaced by a free one, and yield its URL."""
    listener, url = bind("127.0.0.1", 0)
    listener.close()
    port = url.rpartition(":")[2]
    log = folder / f"log-{port}"
    with log.open("w") as out:
        server = subprocess.Popen(
            [word.replace("8000", port) for word in command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=out,
            stderr=out,
        )
    try:
        while f"listening on {url}" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield url
        server.terminate()
        assert server.wait(30) in (0, -15)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.kill()
