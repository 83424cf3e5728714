"""`head_loss` on the heads of Qwen2.5 against torch and Liger; the floor is its matrix products."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.device import Measurement
from benchmarks.harness import Case
from benchmarks.head_loss import step


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return large and small batches of trained tokens."""
    if quick:
        return [lambda: [step("tiny", 64, torch.float32, 3)]]
    assert device.type == "cuda"
    sizes = [("Qwen2.5-1.5B", 8192), ("Qwen2.5-0.5B", 8192), ("Qwen2.5-1.5B", 1024)]
    return [partial(one, model, rows) for model, rows in sizes]


def one(model: str, rows: int) -> list[Case]:
    """Measure one batch."""
    return [step(model, rows, torch.bfloat16, 7)]
