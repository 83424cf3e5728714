"""Intervals and tests over a handful of seeds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from statistics import fmean


def bootstrap(
    values: Sequence[float], level: float = 0.9, draws: int = 10_000
) -> tuple[float, float]:
    """Return the percentile interval of the mean over resampled `values`, the same every time."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    tail = (1 - level) / 2
    return means[int(tail * draws)], means[min(draws - 1, int((1 - tail) * draws))]


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the two-sided p-value of the exact sign-flip test on the paired differences.

    With n pairs it cannot be below 2 / 2**n: 0.0625 for five seeds.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    seen = abs(sum(differences)) - 1e-12
    flips = list(product((1, -1), repeat=len(differences)))
    sums = (abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips)
    return sum(total >= seen for total in sums) / len(flips)


def pass_at_k(wins: int, samples: int, k: int) -> float:
    """Return the unbiased estimate of at least one win in `k` draws (Codex, arXiv 2107.03374)."""
    lost = 1.0
    for i in range(k):
        lost *= max(0, samples - wins - i) / (samples - i)
    return 1.0 - lost
