"""`spark serve MODEL --engine vllm` in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import sys
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

from own_process import Server, running

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


def serving(
    model: Path, folder: Path, *extra: str, **flags: object
) -> AbstractContextManager[Server]:
    """Start a server on a free port and stop it in the end."""
    told = [f"--{name}={value}" for name, value in (FLAGS | flags).items()]
    command = [SPARK, "serve", str(model), "--engine", "vllm", "--enforce-eager", *told, *extra]
    # the tests' own engines run in the test's process, a server's must not
    environment = ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    return running(command, folder / "server.log", environment)


def blocks_in_use(server: Server) -> float:
    """Return the share of KV blocks in use, as vLLM's own metrics have it."""
    text = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc")]
    return max(float(line.rsplit(" ", 1)[1]) for line in lines)


def limits(**values: object) -> str:
    """Return the flag that sets the server's limits."""
    return f"--branching-limits={json.dumps(values)}"
