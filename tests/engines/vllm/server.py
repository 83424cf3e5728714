"""`spark serve MODEL --engine vllm` in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spark.serve.server import bind

SPARK = str(Path(sys.executable).with_name("spark"))
FLAGS = {
    "dtype": "float32",
    "block-size": 32,
    "num-gpu-blocks-override": 256,
    "max-model-len": 512,
    "max-num-seqs": 64,
}
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""By itself vLLM wants a NUMA node for each worker of a tensor-parallel server."""


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def pids(self, name: str) -> list[int]:
        """Return the processes of the server's group whose command line has `name`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode()
                group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
            except (OSError, IndexError):
                continue
            if group == self.process.pid and name in command:
                found.append(int(folder.name))
        return found

    def blocks_in_use(self) -> float:
        """Return the share of KV blocks in use, as vLLM's own metrics have it."""
        text = urllib.request.urlopen(f"{self.url}/metrics").read().decode()
        lines = [line for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc")]
        return max(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextmanager
def serving(model: Path, folder: Path, *extra: str, **flags: object) -> Iterator[Server]:
    """Start a server on a free port and stop it in the end."""
    listener, url = bind("127.0.0.1", 0)
    port = url.rpartition(":")[2]
    listener.close()
    told = [f"--{name}={value}" for name, value in (FLAGS | flags).items()]
    command = [SPARK, "serve", str(model), "--engine", "vllm", f"--port={port}", "--enforce-eager"]
    log = folder / f"server-{port}.log"
    # the tests' own engines run in the test's process, a server's must not
    env = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | ENVIRONMENT
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *told, *extra],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    server = Server(url, process, log)
    try:
        wait_for(server)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(server: Server, seconds: float = 240) -> None:
    """Return when the server answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=2)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(server.log.read_text()[-3000:])


def limits(**values: object) -> str:
    """Return the flag that sets the server's limits."""
    return f"--branching-limits={json.dumps(values)}"
