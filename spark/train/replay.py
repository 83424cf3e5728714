"""Self-imitation: good trajectories of the past are trained again, more and more (SPEAR)."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from spark.core import Tree
from spark.train.credit import CreditConfig, Term, leaf_returns


@dataclass(kw_only=True, slots=True, frozen=True)
class ReplayConfig:
    """How much is imitated, and when (arXiv 2509.22601).

    Exploration gives way to imitation: over the first `ramp` of the budget the weight of replayed
    trajectories rises from 0 along a half cosine, and the credit's novelty bonus falls to 0. Where
    leaves differ in nothing but the bonus, dividing by the deviation undoes the fall until its end.
    """

    size: int = 0
    """Good trajectories kept, the latest; 0 = no replay."""
    draws: int = 8
    """Of them trained again in a step."""
    weight: float = 0.5
    """Weight of a replayed trajectory at the end of the ramp; a fresh leaf has 1."""
    ramp: float = 0.5
    """Share of the budget over which imitation replaces exploration."""

    def __post_init__(self) -> None:
        for name, good in (("size", self.size >= 0), ("draws", self.draws >= 1)):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)} is too few")
        if not self.ramp > 0:
            raise ValueError(f"ramp={self.ramp} must be > 0")

    def imitation(self, spent: float) -> float:
        """Return how far imitation has replaced exploration once `spent` of the budget is gone."""
        return (1 - math.cos(math.pi * min(1.0, spent / self.ramp))) / 2


class Replay:
    """Keeps good leaves, each as a chain of its own, and what leaves earned lately."""

    def __init__(self, config: ReplayConfig, credit: CreditConfig) -> None:
        """`credit`: how rewards become returns; a bonus is not imitated."""
        self._config = config
        self._credit = replace(credit, novelty_bonus=0.0)
        self._good: deque[tuple[float, Tree]] = deque(maxlen=config.size)
        self._returns: deque[float] = deque(maxlen=max(1, config.size))

    def add(self, trees: Sequence[Tree]) -> None:
        """Keep the leaves of `trees` that earned more than the mean of their tree."""
        for tree in trees if self._config.size else ():
            returns = leaf_returns(tree, self._credit)
            self._returns.extend(returns.values())
            mean = math.fsum(returns.values()) / max(1, len(returns))
            good = [
                (value, chain_of(tree, leaf)) for leaf, value in returns.items() if value > mean
            ]
            self._good.extend(good)

    def draw(self, spent: float, seed: int) -> list[tuple[Tree, list[list[Term]]]]:
        """Return kept trajectories and their terms, advantages judged anew.

        The advantage is the return minus the median of what leaves earned lately, over its
        deviation from there; what is no longer better than that is not imitated.
        """
        if not self._good:
            return []
        base = median(self._returns)
        spread = math.sqrt(math.fsum((r - base) ** 2 for r in self._returns) / len(self._returns))
        weight = self._config.weight * self._config.imitation(spent)
        better = [(value, tree) for value, tree in self._good if value > base]
        chosen = random.Random(seed).sample(better, min(self._config.draws, len(better)))
        drawn = []
        for value, tree in chosen if weight else ():
            sampled = sum(sum(node.sampled) for node in tree.nodes)
            share = 1 / max(1, sampled) if self._credit.normalise == "sequence" else 1.0
            term = Term(advantage=(value - base) / (spread or 1.0), weight=weight * share)
            drawn.append((tree, [[term] for _ in tree.nodes]))
        return drawn


def chain_of(tree: Tree, leaf: int) -> Tree:
    """Return the path to `leaf` as a tree of its own."""
    path = tree.path(leaf)
    nodes = [
        replace(tree.nodes[index], parent=place - 1 if place else None)
        for place, index in enumerate(path)
    ]
    return Tree(task=tree.task, seed=tree.seed, nodes=nodes, weight_version=tree.weight_version)
