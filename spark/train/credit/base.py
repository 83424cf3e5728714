"""What a credit scheme works on: the returns of the leaves, their weights, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from spark.core import Node, Tree
from spark.novelty import novelties
from spark.registry import Registry

SCHEMES = Registry(
    "credit scheme",
    {
        name: f"spark.train.credit.schemes:{name}"
        for name in ("leaf", "node", "nested", "tree", "depth", "anchor")
    },
)
MOST_NOVEL = 10.0
"""Novelty from which on a state earns the whole bonus."""


@dataclass(kw_only=True, slots=True, frozen=True)
class CreditConfig:
    """How leaf rewards become advantages of nodes. Raises ValueError for an unknown scheme."""

    scheme: str = "leaf"
    """leaf (the paper), node, nested, tree, depth or anchor; `spark/train/credit/schemes.py` says
    what each does and where it comes from."""
    leaf_weights: Literal["uniform", "branching"] = "uniform"
    """"uniform": every leaf counts the same, so subtrees that branched more often count for more;
    "branching": a leaf counts 1 / (number of siblings), multiplied along its path, which is
    unbiased for the policy."""
    compare: Literal["deviation", "mean", "none"] = "deviation"
    """What becomes of a return in its group: "deviation": (R - mean) / deviation (GRPO); "mean":
    R - mean (Dr. GRPO, arXiv 2503.20783); "none": R itself (REINFORCE)."""
    success_reward: float = 10.0
    """Return of a leaf for one unit of environment reward."""
    invalid_penalty: float = 0.1
    """Taken from the return of a leaf for every invalid action on its path."""
    novelty_bonus: float = 0.0
    """Added to the reward of a decision that leads to a state unlike all others of its episode;
    less for a more familiar one (Never Give Up, arXiv 2002.06038)."""
    baseline_prior: float = 2.0
    """Scheme nested: leaves that the baseline from before a fork counts as, beside the siblings."""
    discount: float = 0.95
    """Scheme anchor: of a reward per decision that lies before it."""
    step_weight: float = 1.0
    """Scheme anchor: weight of the step's advantage beside the episode's."""
    once_per_leaf: bool = False
    """Train a shared node once for every leaf below it, as the paper does, instead of once with
    their weighted mean. The gradients are equal until a ratio is clipped."""
    normalise: Literal["sequence", "token"] = "sequence"
    """"sequence": a leaf's loss is its mean over what was sampled, tokens without a choice
    included; "token": every sampled token weighs the same."""

    def __post_init__(self) -> None:
        SCHEMES.check(self.scheme)


@dataclass(kw_only=True, slots=True, frozen=True)
class Term:
    """One term of the loss for every trained token of a node."""

    advantage: float
    weight: float


def node_rewards(tree: Tree, config: CreditConfig) -> list[float]:
    """Return for every node its scaled reward, less the penalty, plus the bonus for novelty."""
    rewards = [
        config.success_reward * node.reward - config.invalid_penalty * node.invalid
        for node in tree.nodes
    ]
    if config.novelty_bonus:
        for index, value in _novelty(tree).items():
            rewards[index] += config.novelty_bonus * min(value, MOST_NOVEL) / MOST_NOVEL
    return rewards


def given_tail(node: Node) -> list[int]:
    """Return the tokens that nobody sampled at the end of `node`: the observation, if any."""
    count = 0
    while count < len(node.tokens) and not node.sampled[-1 - count]:
        count += 1
    return node.tokens[len(node.tokens) - count :]


def _novelty(tree: Tree) -> dict[int, float]:
    """Return the novelty of the state every node leads to, the prompt's and endings left out."""
    found: dict[int, float] = {}
    for leaf in tree.leaves():
        path = [index for index in tree.path(leaf) if given_tail(tree.nodes[index])]
        values = novelties([given_tail(tree.nodes[index]) for index in path])
        found |= dict(zip(path[1:], values[1:], strict=True))
    return found


def leaf_returns(tree: Tree, config: CreditConfig) -> dict[int, float]:
    """Return leaf -> sum of the rewards of its path.

    A trajectory that failed for reasons of its own (`done` is False) has earned nothing, good or
    bad, and is left out.
    """
    rewards = node_rewards(tree, config)
    return {
        leaf: math.fsum(rewards[index] for index in tree.path(leaf))
        for leaf in tree.leaves()
        if tree.nodes[leaf].done
    }


@dataclass(kw_only=True, slots=True)
class Group:
    """The leaves of one tree that are compared with each other."""

    tree: Tree
    config: CreditConfig
    returns: dict[int, float] = field(init=False)
    weights: dict[int, float] = field(init=False)
    """Leaf -> weight; they sum to the number of leaves."""
    paths: dict[int, list[int]] = field(init=False)
    below: list[list[int]] = field(init=False)
    """Node -> the leaves below it, in order."""

    def __post_init__(self) -> None:
        self.returns = leaf_returns(self.tree, self.config)
        self.paths = {leaf: self.tree.path(leaf) for leaf in self.returns}
        self.weights = dict.fromkeys(self.returns, 1.0)
        if self.config.leaf_weights == "branching":
            weights = self.tree.weights()
            scale = len(self.returns) / (math.fsum(weights[leaf] for leaf in self.returns) or 1.0)
            self.weights = {leaf: weights[leaf] * scale for leaf in self.returns}
        self.below = [[] for _ in self.tree.nodes]
        for leaf, path in self.paths.items():
            for index in path:
                self.below[index].append(leaf)

    def mean(self, leaves: Iterable[int]) -> float:
        """Return the weighted mean of the returns of `leaves`."""
        return weighted_mean((self.returns[leaf], self.weights[leaf]) for leaf in leaves)

    def deviation(self) -> float:
        """Return the weighted standard deviation of all returns."""
        return math.sqrt(self._variance(list(self.returns)))

    def compared(self, leaves: list[int]) -> dict[int, float]:
        """Return leaf -> return as `compare` says, `leaves` being the group; equal ones get 0."""
        mean = self.mean(leaves)
        return {
            leaf: compare(self.returns[leaf], mean, math.sqrt(self._variance(leaves)), self.config)
            for leaf in leaves
        }

    def _variance(self, leaves: list[int]) -> float:
        mean = self.mean(leaves)
        return weighted_mean(((self.returns[x] - mean) ** 2, self.weights[x]) for x in leaves)


Scheme = Callable[[Group], dict[tuple[int, int], float]]
"""Group -> advantage of every (leaf, node on its path)."""


def compare(value: float, mean: float, deviation: float, config: CreditConfig) -> float:
    """Return `value` beside its group's mean and deviation, as `config.compare` says."""
    if config.compare == "none":
        return value
    if config.compare == "mean":
        return value - mean
    return (value - mean) / deviation if deviation > 1e-6 else 0.0


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the mean of (value, weight) pairs, 0.0 when there are none."""
    kept = list(pairs)
    total = math.fsum(weight for _, weight in kept)
    return math.fsum(value * weight for value, weight in kept) / total if total else 0.0
