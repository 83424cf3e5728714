"""The nouns everybody shares: `Node` and `Tree`. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Node:
    """A run of tokens added to its parent, and what was learnt while sampling them.

    The four per-token lists have the length of `tokens`; where `sampled` is False (prompt,
    observation) their entries are 0.0.

    Example:
        Node(parent=0, turn=1, tokens=[7, 9, 4], sampled=[True, True, False],
             logprobs=[-0.1, -1.2, 0.0], log_kept_mass=[0.0, -0.7, 0.0],
             entropies=[0.3, 1.1, 0.0], allowed={1: [9, 11]}, trigger="explore", reward=0.0)
    """

    parent: int | None
    """Index of the parent in `Tree.nodes`; None for the root (the prompt)."""
    turn: int = 0
    """Decision the tokens belong to, from 0; the prompt has -1."""
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    """True where the policy sampled the token; only those are trained."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability in nats of the token over the full tempered vocabulary."""
    log_kept_mass: list[float] = field(default_factory=list)
    """Log mass of the set the token was drawn from (top-k, top-p, min-p, allowed tokens), <= 0.
    The exact log-probability of the draw is `logprobs - log_kept_mass`."""
    entropies: list[float] = field(default_factory=list)
    """Full-vocabulary entropy in nats at temperature 1, before the token was drawn."""
    allowed: dict[int, list[int]] = field(default_factory=dict)
    """Offset in `tokens` -> the token ids the constraint allowed there; absent = no constraint."""
    trigger: str | None = None
    """Why the tree branches at this node's end, e.g. "explore"; None where it does not."""
    reward: float = 0.0
    """Environment reward earned by the action that ends in this node."""
    invalid: bool = False
    """True when that action was not one the environment admits."""
    done: bool = False
    """True when the trajectory ends here (the environment ended or the horizon was reached)."""


@dataclass(kw_only=True, slots=True)
class Tree:
    """A flat list of nodes in which every parent precedes its children.

    Example:
        Tree(task="L0/17", seed=3, nodes=[Node(parent=None, turn=-1), Node(parent=0, done=True)])
    """

    task: str
    seed: int
    nodes: list[Node] = field(default_factory=list)
    weight_version: int = 0
    """Version of the policy's weights that sampled the tree."""
    info: dict[str, Any] = field(default_factory=dict)
    """Provenance and accounting: rule, budget, engine counters, seconds."""

    def children(self) -> list[list[int]]:
        """Return the indices of every node's children, in order."""
        children: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            if node.parent is not None:
                children[node.parent].append(index)
        return children

    def leaves(self) -> list[int]:
        """Return the indices of the nodes without children, in order."""
        return [index for index, children in enumerate(self.children()) if not children]

    def path(self, index: int) -> list[int]:
        """Return the indices from the root to `index`, both included."""
        path = list(self._ancestors(index))
        path.reverse()
        return path

    def total_reward(self, leaf: int) -> float:
        """Return the sum of the rewards on the path to `leaf`."""
        return sum(self.nodes[index].reward for index in self._ancestors(leaf))

    def weights(self) -> dict[int, float]:
        """Return leaf -> product of 1 / (number of siblings) on its path; the weights sum to 1.

        Uniform weights over leaves over-count subtrees that branched more often; these do not.
        """
        children = self.children()
        share = [1.0] * len(self.nodes)
        for index, node in enumerate(self.nodes):
            if node.parent is not None:
                share[index] = share[node.parent] / len(children[node.parent])
        return {leaf: share[leaf] for leaf in self.leaves()}

    def _ancestors(self, index: int) -> Iterator[int]:
        """Yield `index` and its ancestors, leaf first."""
        cursor: int | None = index
        while cursor is not None:
            yield cursor
            cursor = self.nodes[cursor].parent


@dataclass(kw_only=True, slots=True, frozen=True)
class Watch:
    """Mid-generation trigger: sampling pauses right after a token that fits, to allow a fork."""

    entropy_above: float | None = None
    """Pause after a token drawn at an entropy (nats, temperature 1) above this."""
    tags: tuple[str, ...] = ()
    """Pause after the token that completes one of these strings."""
