"""The in-process engine of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spark.engines.vllm.stepper import Stepper, Stream

__all__ = ["Harness", "Stream"]

DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "block_size": 32,
    "num_gpu_blocks_override": 256,
    "max_num_seqs": 64,
    "seed": 0,
}


class Harness(Stepper):
    """An engine with `--branching spark`, or without."""

    def __init__(self, model: Path, branching: dict | None = None, **settings: Any) -> None:
        chosen = {"branching": "spark"} if branching is None else branching
        super().__init__(str(model), additional_config=chosen, **{**DEFAULTS, **settings})
