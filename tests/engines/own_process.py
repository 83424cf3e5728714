"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from spark.serve.server import bind

_LOCK, _DRAWN = threading.Lock(), set[int]()
"""Ports that this process has drawn already."""


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def pids(self, name: str) -> list[int]:
        """Return the processes it has started whose command line has `name`."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        return [each.pid for each in started if name in " ".join(each.cmdline())]

    def wait(self, seconds: float = 900) -> None:
        """Return once it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
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


def free_port() -> tuple[int, str]:
    """Return a port and its URL, outside of the range from which connections get theirs.

    A server takes seconds until it listens, in which any connection could take its port. Two
    suites side by side must not draw the same ones, whatever seeds their tests set: vLLM shares a
    port with whoever else listens on it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with _LOCK:
            if port in _DRAWN:
                continue
            _DRAWN.add(port)
        try:
            listener, url = bind("127.0.0.1", port)
        except OSError:
            continue
        listener.close()
        return port, url
    raise AssertionError("a hundred ports are taken")


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run `command`, which listens on the port that is added to it, until left."""
    port, url = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
    server = Server(url, process, log)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@contextmanager
def together(*starts: AbstractContextManager[Server]) -> Iterator[list[Server]]:
    """Start servers at once: each imports for most of the time, on one core."""
    with ExitStack() as stack, ThreadPoolExecutor(len(starts)) as pool:
        yield list(pool.map(stack.enter_context, starts))
