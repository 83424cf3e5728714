"""Episodic novelty: how far the last state of an episode lies from those before it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import fmean

NEIGHBOURS, KERNEL, CONSTANT = 10, 1e-3, 1e-3
CLUSTER, SIMILAR = 8e-3, 8.0


def novelties(states: Sequence[Sequence[Hashable]]) -> list[float]:
    """Return the novelty of each of `states`, bags of words or token ids, at its place.

    Never Give Up (arXiv 2002.06038, Algorithm 1): 1 / (sqrt(sum of kernels) + 0.001) over the ten
    nearest earlier states, the kernel being 0.001 / (d2 / mean d2 + 0.001) less a cluster
    distance; 0 where they are all the same. Distances are those of normalised bags instead of
    learned embeddings. A repeated state has about 1 or less, an unlike one 10 or more, and a
    state with nothing before it 1000.
    """
    bags = [Counter(state) for state in states]
    seen: list[float] = []
    values = []
    for index in range(len(bags)):
        nearest = _nearest(bags[: index + 1])
        seen += nearest
        values.append(_novelty(nearest, fmean(seen) if seen else 0.0))
    return values


def _novelty(nearest: list[float], mean: float) -> float:
    """Return the novelty of a state from the squared distances to its neighbours."""
    scale = mean or 1.0
    kernels = [KERNEL / (max(d / scale - CLUSTER, 0.0) + KERNEL) for d in nearest]
    similarity = math.sqrt(math.fsum(kernels)) + CONSTANT
    return 0.0 if similarity > SIMILAR else 1.0 / similarity


def _nearest(bags: Sequence[Counter[Hashable]]) -> list[float]:
    """Return the squared distances of the last bag to its nearest predecessors."""
    *before, last = bags
    return sorted(_distance(last, other) for other in before)[:NEIGHBOURS]


def _distance(one: Counter[Hashable], other: Counter[Hashable]) -> float:
    """Return the squared distance of two bags scaled to length 1."""
    product = sum(count * other[item] for item, count in one.items())
    lengths = math.sqrt(sum(c * c for c in one.values()) * sum(c * c for c in other.values()))
    return max(0.0, 2.0 - 2.0 * product / lengths) if lengths else 0.0
