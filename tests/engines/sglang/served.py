"""SGLang's own server in a process of its own, started as a user starts it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from own_process import Server, running

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


def flags(**more: object) -> list[str]:
    """Return the command line's flags; True = a flag without a value."""
    found = ["--sleep-on-idle", "--skip-server-warmup"]
    # flags of our own command are written with an underscore
    ours = {"chat_template"}
    named = {n if n in ours else n.replace("_", "-"): value for n, value in more.items()}
    for name, value in {**FLAGS, **named}.items():
        found += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


def served(
    model: Path, log: Path, how: Sequence[str] = LAUNCH, **more: object
) -> AbstractContextManager[Server]:
    """Serve `model`; `how` is the command up to the model."""
    chosen = ["--engine", "sglang"] if how is SERVE else []
    return running([*how, str(model), *chosen, *flags(**more)], log)
