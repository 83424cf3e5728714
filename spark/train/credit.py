"""Credit: what the leaves earned, turned into one advantage and one weight per node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spark.core import Tree


@dataclass(kw_only=True, slots=True, frozen=True)
class CreditConfig:
    """How leaf rewards become advantages of nodes."""

    success_reward: float = 10.0
    """Return of a leaf for one unit of environment reward."""
    invalid_penalty: float = 0.1
    """Taken from the return of a leaf for every invalid action on its path."""
    once_per_leaf: bool = False
    """Train a shared node once for every leaf below it, as the paper does, instead of once with
    their weighted mean. The gradients are equal until a ratio is clipped."""
    normalise: Literal["sequence", "token"] = "sequence"
    """"sequence": every leaf weighs the same; "token": every sampled token of a leaf does."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Term:
    """One term of the loss for every trained token of a node."""

    advantage: float
    weight: float


def leaf_returns(tree: Tree, config: CreditConfig) -> dict[int, float]:
    """Return leaf -> scaled reward of its path minus the penalties for invalid actions.

    A trajectory that failed for reasons of its own (`done` is False) has earned nothing, good or
    bad, and is left out.
    """
    return {
        leaf: config.success_reward * tree.total_reward(leaf)
        - config.invalid_penalty * sum(tree.nodes[index].invalid for index in tree.path(leaf))
        for leaf in tree.leaves()
        if tree.nodes[leaf].done
    }


def leaf_advantages(tree: Tree, config: CreditConfig) -> dict[int, float]:
    """Return leaf -> group-normalised return; all zero where every leaf earned the same."""
    returns = leaf_returns(tree, config)
    count = max(1, len(returns))
    mean = math.fsum(returns.values()) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in returns.values()) / count)
    if deviation < 1e-6:
        return dict.fromkeys(returns, 0.0)
    return {leaf: (value - mean) / deviation for leaf, value in returns.items()}


def credit(tree: Tree, config: CreditConfig) -> list[list[Term]]:
    """Return the loss terms of every node of `tree`.

    A leaf l has the share c_l (1 over its sampled tokens, or 1). A node has the weight
    w = sum of c_l and the advantage sum(c_l A_l) / w over the leaves l below it, which is the
    gradient of training it once per leaf with (A_l, c_l) as long as no ratio is clipped.
    """
    terms: list[list[Term]] = [[] for _ in tree.nodes]
    for leaf, advantage in leaf_advantages(tree, config).items():
        path = tree.path(leaf)
        sampled = sum(sum(tree.nodes[index].sampled) for index in path)
        share = 1.0 / max(sampled, 1) if config.normalise == "sequence" else 1.0
        for index in path:
            terms[index].append(Term(advantage=advantage, weight=share))
    return terms if config.once_per_leaf else [[_merge(node)] for node in terms]


def _merge(terms: list[Term]) -> Term:
    """Return the weighted mean of `terms` with the sum of their weights; nothing weighs nothing."""
    weight = math.fsum(term.weight for term in terms)
    total = math.fsum(term.weight * term.advantage for term in terms)
    return Term(advantage=total / weight if terms else 0.0, weight=weight)
