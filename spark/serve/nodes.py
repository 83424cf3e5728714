"""The nodes a server keeps: `spark.core.Node` and where in the engine its KV came from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from spark.core import Node
from spark.serve.backend import Delta


@dataclass(slots=True, eq=False)
class ServedNode:
    """A run of tokens and what it takes to continue it."""

    node: Node
    parent: ServedNode | None
    start: int
    """Tokens before it; below the parent's end where a client continued from there."""
    leaf: str
    """Generation whose KV covers the path up to the node's end."""
    stop: str | None = None
    """Why the node ends: "fork", a finish reason, or None for given tokens."""
    id: int = -1
    """Index in the tree; -1 while the request that makes it runs."""

    @property
    def end(self) -> int:
        """Tokens of the path up to and including this node."""
        return self.start + len(self.node.tokens)

    def path(self) -> list[ServedNode]:
        """Return the nodes from the root to this one."""
        up = [self]
        while (parent := up[-1].parent) is not None:
            up.append(parent)
        return up[::-1]

    def tokens(self) -> list[int]:
        """Return the tokens of the path, from the root to this node's end."""
        tokens: list[int] = []
        for each in self.path():
            tokens[each.start :] = each.node.tokens
        return tokens

    def grow(self, delta: Delta) -> None:
        """Append sampled tokens."""
        node, before = self.node, len(self.node.tokens)
        node.allowed |= {before + offset: ids for offset, ids in delta.allowed.items()}
        node.tokens += delta.tokens
        node.sampled += [True] * len(delta.tokens)
        node.logprobs += delta.logprobs
        node.log_kept_mass += delta.log_kept_mass
        node.entropies += delta.entropies

    def split(self, offset: int) -> ServedNode:
        """Cut off and return the first `offset` tokens as a node of their own: the new parent."""
        node = self.node
        head, tail = _part(node, 0, offset), _part(node, offset, len(node.tokens))
        above = ServedNode(head, self.parent, self.start, self.leaf, "fork")
        self.node, self.parent, self.start = tail, above, self.start + offset
        return above

    def describe(self) -> dict[str, Any]:
        """Return the node as the answer shows it; per-token lists as long as `token_ids`.

        The lists are copies: the answer may stay in this process.
        """
        node = self.node
        described: dict[str, Any] = {
            "id": self.id,
            "parent": None if self.parent is None else self.parent.id,
            "start": self.start,
            "token_ids": list(node.tokens),
            "stop": self.stop,
        }
        if any(node.sampled):
            described |= {
                "logprobs": list(node.logprobs),
                "entropies": list(node.entropies),
                "log_kept_mass": list(node.log_kept_mass),
                "entropy": sum(node.entropies) / len(node.entropies),
            }
        if node.allowed:
            described["allowed"] = {str(at): ids for at, ids in node.allowed.items()}
        if node.trigger:
            described["trigger"] = node.trigger
        return described


def given(tokens: list[int], parent: ServedNode | None, start: int, leaf: str) -> ServedNode:
    """Return a node of tokens that nobody sampled: a prompt, or a tool's answer."""
    zeros = [0.0] * len(tokens)
    node = Node(
        parent=None,
        turn=-1,
        tokens=list(tokens),
        sampled=[False] * len(tokens),
        logprobs=zeros,
        log_kept_mass=list(zeros),
        entropies=list(zeros),
    )
    return ServedNode(node, parent, start, leaf)


def _part(node: Node, start: int, end: int) -> Node:
    return replace(
        node,
        tokens=node.tokens[start:end],
        sampled=node.sampled[start:end],
        logprobs=node.logprobs[start:end],
        log_kept_mass=node.log_kept_mass[start:end],
        entropies=node.entropies[start:end],
        allowed={at - start: ids for at, ids in node.allowed.items() if start <= at < end},
    )


@dataclass(kw_only=True, slots=True, eq=False)
class ServedTree:
    """A tree between and during the requests that grow it."""

    id: str
    policy: str
    nodes: list[ServedNode] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    """Ids of all its generations in the engine."""
    busy: int = 0
    """Requests in progress."""
    requests: count[int] = field(default_factory=count)
    last_used: float = field(default_factory=time.monotonic)

    def adopt(self, leaves: Iterable[ServedNode]) -> list[ServedNode]:
        """Number and return the new nodes on the paths to `leaves`, parents first."""
        before = len(self.nodes)
        for leaf in leaves:
            for node in leaf.path():
                if node.id < 0:
                    node.id = len(self.nodes)
                    node.node.parent = None if node.parent is None else node.parent.id
                    self.nodes.append(node)
        return self.nodes[before:]

    def weight(self, node: ServedNode) -> float:
        """Return the product of 1 / (number of siblings) on the path to `node`."""
        children: dict[int | None, int] = {}
        for each in self.nodes:
            children[each.node.parent] = children.get(each.node.parent, 0) + 1
        share = 1.0
        for each in node.path():
            share /= children[each.node.parent]
        return share
