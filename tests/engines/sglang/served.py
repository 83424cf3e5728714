"""SGLang's own server in a process of its own, started as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LAUNCH = [sys.executable, "-m", "sglang.launch_server", "--model-path"]
SERVE, THEIRS = (
    [str(Path(sys.executable).with_name(name)), "serve"] for name in ("spark", "sglang")
)
FLAGS = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "dtype": "float32",
    "mem-fraction-static": "0.1",
    "max-total-tokens": "16384",
    "cuda-graph-backend-decode": "disabled",
    "cuda-graph-backend-prefill": "disabled",
    "log-level": "error",
    "random-seed": "0",
    "branching": "spark",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flags(port: int, **more: object) -> list[str]:
    """Return the command line's flags; True = a flag without a value."""
    found = ["--sleep-on-idle", "--skip-server-warmup", "--port", str(port)]
    # flags of our own command are written with an underscore
    ours = {"chat_template"}
    named = {n if n in ours else n.replace("_", "-"): value for n, value in more.items()}
    for name, value in {**FLAGS, **named}.items():
        found += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


class Server:
    """One running server."""

    def __init__(self, command: list[str], log: Path, port: int) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float = 240) -> Server:
        """Return once it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.3)
        raise TimeoutError(self.log.read_text()[-4000:])

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@contextmanager
def served(model: Path, log: Path, how: Sequence[str] = LAUNCH, **more: object) -> Iterator[Server]:
    """Serve `model`; `how` is the command up to the model."""
    port = free_port()
    chosen = ["--engine", "sglang"] if how is SERVE else []
    server = Server([*how, str(model), *chosen, *flags(port, **more)], log, port)
    try:
        yield server.wait()
    finally:
        server.stop()
