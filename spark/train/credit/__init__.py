"""Credit: what the leaves earned, turned into one advantage and one weight per node."""

from __future__ import annotations

import math

from spark.core import Tree
from spark.train.credit.base import SCHEMES, CreditConfig, Group, Term, leaf_returns

__all__ = ["SCHEMES", "CreditConfig", "Term", "credit", "leaf_returns", "teaches"]


def credit(tree: Tree, config: CreditConfig) -> list[list[Term]]:
    """Return the loss terms of every node of `tree`.

    A leaf l has the share c_l: its weight, divided by its sampled tokens where sequences are
    normalised. A node has the weight w = sum of c_l and the advantage sum(c_l A_l) / w over the
    leaves l below it, which is the gradient of training it once per leaf with (A_l, c_l) as long
    as no ratio is clipped.
    """
    group = Group(tree=tree, config=config)
    advantages = SCHEMES[config.scheme](group)
    terms: list[list[Term]] = [[] for _ in tree.nodes]
    for leaf, path in group.paths.items():
        sampled = sum(sum(tree.nodes[index].sampled) for index in path)
        share = group.weights[leaf]
        if config.normalise == "sequence":
            share /= max(sampled, 1)
        for index in path:
            terms[index].append(Term(advantage=advantages[leaf, index], weight=share))
    return terms if config.once_per_leaf else [[_merge(node)] for node in terms]


def teaches(terms: list[list[Term]]) -> bool:
    """Return whether a node has an advantage; a weighted mean of equal returns is off by 1e-16."""
    return any(abs(term.advantage) > 1e-6 for each in terms for term in each)


def _merge(terms: list[Term]) -> Term:
    """Return the weighted mean of `terms` with the sum of their weights; nothing weighs nothing."""
    weight = math.fsum(term.weight for term in terms)
    total = math.fsum(term.weight * term.advantage for term in terms)
    return Term(advantage=total / weight if terms else 0.0, weight=weight)
