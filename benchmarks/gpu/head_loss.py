"""`head_loss` on the heads of Qwen2.5 against torch and Liger; the floor is its matrix products."""

from __future__ import annotations

import torch

from benchmarks.harness import Case
from benchmarks.head_loss import step


def run(device: torch.device, quick: bool) -> list[Case]:
    """Return large and small batches of trained tokens."""
    if quick:
        return [step("tiny", 64, torch.float32, 3)]
    assert device.type == "cuda"
    sizes = [("Qwen2.5-1.5B", 8192), ("Qwen2.5-0.5B", 8192), ("Qwen2.5-1.5B", 1024)]
    return [step(model, rows, torch.bfloat16, 7) for model, rows in sizes]
