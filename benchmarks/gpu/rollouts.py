"""Trees over long prefixes with forks and as chains, on a model of Qwen2.5-0.5B's shape.

In float32: the ways batch differently, and must draw the same tokens all the same.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.engine import random_model
from benchmarks.harness import Case
from benchmarks.rollouts import regenerate


def run(device: torch.device, quick: bool) -> list[Case]:
    """Return prefixes of 4,096 and 16,384 tokens with 8 leaves."""
    model = random_model("tiny" if quick else "Qwen2.5-0.5B", device).float()
    prefixes = (256,) if quick else (4096, 16384)
    cases = [c for p in prefixes for c in regenerate("trunk", p, 8, 2, 1 if quick else 3, model)]
    for case in cases:
        case.case["device"] = device.type
    return cases
