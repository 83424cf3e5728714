"""Trees over long prefixes with forks and as chains, on a model of Qwen2.5-0.5B's shape.

First small trees in float32, whose tokens must be the same in all ways. Those that are timed are in
bfloat16, as models are served: the ways batch differently, so that a draw near the edge between two
tokens may come out differently. All decisions are equally long, and how many differ is told.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.device import Measurement
from benchmarks.gpu.engine import random_model
from benchmarks.harness import Case
from benchmarks.rollouts import regenerate


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return prefixes of 4,096 and 16,384 tokens with 8 leaves."""
    prefixes = (256,) if quick else (4096, 16384)
    return [partial(trees, prefix, device, quick) for prefix in prefixes]


def trees(prefix: int, device: torch.device, quick: bool) -> list[Case]:
    """Regenerate two trees at once."""
    regenerate("trunk", 256, 8, 2, 1, random_model("tiny", device).float())
    model = random_model("tiny" if quick else "Qwen2.5-0.5B", device)
    cases = regenerate("trunk", prefix, 8, 2, 1 if quick else 2, model, exact=False)
    for case in cases:
        case.case["device"] = device.type
    return cases
