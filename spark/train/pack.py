"""Packing: a forest becomes rows in which every token is forwarded once.

The nodes stand in depth-first order, so that token q sees token k exactly when
`k <= q < end[k]`. A trained token is predicted from the hidden state of its predecessor on the
path, `pred`, not from a shifted label: no token is repeated at a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from spark.core import Node, Tree
from spark.train.credit import Term


@dataclass(kw_only=True, slots=True, frozen=True)
class Segment:
    """A run of tokens without a fork inside it."""

    start: int
    stop: int
    parent: int | None
    """Index of the segment that ends where this one begins; None at a root."""


@dataclass(kw_only=True, slots=True)
class Row:
    """A packed forest of T tokens, N of them trained, with M >= N terms of the loss."""

    tokens: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T], depth along the path."""
    end: Tensor
    """int64 [T], where the subtree of the token's node ends."""
    segments: list[Segment]
    """In the order of the row, without gaps."""
    targets: Tensor
    """int64 [N], packed index of the trained tokens."""
    pred: Tensor
    """int64 [N], packed index of the token before each of them on its path."""
    behaviour: Tensor
    """float32 [N], log-probability under which the engine drew them."""
    allowed_target: Tensor
    """int64 [K], index into `targets`, ascending, of each allowed token."""
    allowed_token: Tensor
    """int64 [K], the allowed tokens."""
    term_target: Tensor
    """int64 [M], index into `targets`, ascending."""
    advantage: Tensor
    """float32 [M]."""
    weight: Tensor
    """float32 [M]."""

    def to(self, device: torch.device) -> Row:
        """Return the row with its tensors on `device`."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)

    def part(self, which: slice) -> Row:
        """Return the row with only `which` of its trained tokens and their terms."""
        edges = torch.tensor([which.start, which.stop])
        term = slice(*torch.searchsorted(self.term_target, edges).tolist())
        some = slice(*torch.searchsorted(self.allowed_target, edges).tolist())
        return replace(
            self,
            targets=self.targets[which],
            pred=self.pred[which],
            behaviour=self.behaviour[which],
            allowed_target=self.allowed_target[some] - which.start,
            allowed_token=self.allowed_token[some],
            term_target=self.term_target[term] - which.start,
            advantage=self.advantage[term],
            weight=self.weight[term],
        )

    def mask(self) -> Tensor:
        """Return who sees whom as bool [T, T]."""
        index = torch.arange(len(self.tokens), device=self.end.device)
        query, key = index[:, None], index[None, :]
        return (key <= query) & (query < self.end[None, :])

    def ancestry(self, segment: int) -> list[int]:
        """Return the indices of the segments that `segment` sees, from its root to itself."""
        path = [segment]
        while (parent := self.segments[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]


@dataclass(kw_only=True, slots=True)
class Part:
    """Some paths of one tree: the nodes to forward, and those of them to train."""

    tree: Tree
    terms: Sequence[Sequence[Term]]
    keep: set[int]
    train: set[int]

    @property
    def size(self) -> int:
        """Number of tokens to forward."""
        return sum(len(self.tree.nodes[index].tokens) for index in self.keep)


@dataclass(slots=True)
class _Builder:
    """The lists a row is made of, while trees are added."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    pred: list[int] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    allowed: list[tuple[int, int]] = field(default_factory=list)
    terms: list[tuple[int, float, float]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Append the kept nodes of one tree in depth-first order."""
        children = [[kid for kid in kids if kid in part.keep] for kids in part.tree.children()]
        order = preorder(children)
        last: dict[int, int] = {}
        spans: dict[int, tuple[int, int]] = {}
        for index in order:
            node = part.tree.nodes[index]
            start = len(self.tokens)
            before = -1 if node.parent is None else last[node.parent]
            depth = 0 if before < 0 else self.positions[before] + 1
            self.tokens += node.tokens
            self.positions += range(depth, depth + len(node.tokens))
            last[index] = len(self.tokens) - 1 if node.tokens else before
            spans[index] = (start, len(self.tokens))
            terms = [term for term in part.terms[index] if term.weight]
            if terms and index in part.train:
                self._train(node, terms, start, before)
        self._close(order, children, spans, part.tree)

    def _train(self, node: Node, terms: Sequence[Term], start: int, before: int) -> None:
        """Add the trained tokens of `node`, whose first token stands at `start`."""
        for offset in trained_offsets(node):
            index = start + offset
            self.pred.append(index - 1 if offset else before)
            self.behaviour.append(node.logprobs[offset] - node.log_kept_mass[offset])
            target = len(self.targets)
            self.targets.append(index)
            self.allowed += [(target, token) for token in node.allowed.get(offset, ())]
            self.terms += [(target, term.advantage, term.weight) for term in terms]

    def _close(
        self,
        order: list[int],
        children: list[list[int]],
        spans: dict[int, tuple[int, int]],
        tree: Tree,
    ) -> None:
        """Add what is known once all nodes stand: the ends of the subtrees and the segments."""
        ends: dict[int, int] = {}
        for index in reversed(order):
            ends[index] = ends[children[index][-1]] if children[index] else spans[index][1]
        for index in order:
            self.end += [ends[index]] * (spans[index][1] - spans[index][0])
        segment: dict[int, int] = {}
        for index in order:
            parent = tree.nodes[index].parent
            if parent is not None and len(children[parent]) == 1:
                own = segment[parent]
                self.segments[own] = replace(self.segments[own], stop=spans[index][1])
            else:
                own = len(self.segments)
                above = None if parent is None else segment[parent]
                self.segments.append(
                    Segment(start=spans[index][0], stop=spans[index][1], parent=above)
                )
            segment[index] = own

    def row(self) -> Row:
        """Return the row of everything added so far."""
        allowed = torch.tensor(self.allowed, dtype=torch.int64).reshape(-1, 2)
        return Row(
            tokens=torch.tensor(self.tokens),
            positions=torch.tensor(self.positions),
            end=torch.tensor(self.end),
            segments=self.segments,
            targets=torch.tensor(self.targets, dtype=torch.int64),
            pred=torch.tensor(self.pred, dtype=torch.int64),
            behaviour=torch.tensor(self.behaviour, dtype=torch.float32),
            allowed_target=allowed[:, 0].contiguous(),
            allowed_token=allowed[:, 1].contiguous(),
            term_target=torch.tensor([term[0] for term in self.terms], dtype=torch.int64),
            advantage=torch.tensor([term[1] for term in self.terms], dtype=torch.float32),
            weight=torch.tensor([term[2] for term in self.terms], dtype=torch.float32),
        )


def trained_offsets(node: Node) -> list[int]:
    """Return the offsets of the tokens of `node` that the policy chose.

    A token that was the only allowed one is no choice: its log-probability is 0 whatever the
    weights are.
    """
    return [
        offset
        for offset, sampled in enumerate(node.sampled)
        if sampled and len(node.allowed.get(offset, (0, 0))) > 1
    ]


def preorder(children: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices reachable from 0 in depth-first order."""
    order: list[int] = []
    stack = [0]
    while stack:
        order.append(stack.pop())
        stack += reversed(children[order[-1]])
    return order


def split(tree: Tree, terms: Sequence[Sequence[Term]], max_tokens: int) -> list[Part]:
    """Cut `tree` into parts of whole paths, each of at most `max_tokens` unique tokens if it can.

    A node that lies in several parts is trained in the first one and is context in the others.
    """
    parts: list[Part] = []
    keep: set[int] = set()
    size = 0
    seen: set[int] = set()
    children = tree.children()
    for leaf in (index for index in preorder(children) if not children[index]):
        path = tree.path(leaf)
        new = sum(len(tree.nodes[index].tokens) for index in path if index not in keep)
        if keep and size + new > max_tokens:
            parts.append(Part(tree=tree, terms=terms, keep=keep, train=keep - seen))
            seen |= keep
            keep, size = set(), 0
            new = sum(len(tree.nodes[index].tokens) for index in path)
        keep |= set(path)
        size += new
    return [*parts, Part(tree=tree, terms=terms, keep=keep, train=keep - seen)]


def idle_row() -> Row:
    """Return a row with nothing to train, for a process that has fewer rows than another."""
    tree = Tree(task="idle", seed=0, nodes=[Node(parent=None, tokens=[0, 0], sampled=[False] * 2)])
    (row,) = pack([tree], [[[]]], 2)
    return row


def pack(
    trees: Iterable[Tree], terms: Iterable[Sequence[Sequence[Term]]], max_tokens: int
) -> list[Row]:
    """Pack `trees` in order into rows of at most `max_tokens` tokens.

    Args:
        trees: the forest.
        terms: for every tree the loss terms of every node; none, or none with a weight = not
            trained, as where all trajectories below have failed.
        max_tokens: bound of a row; a single longer path gets a row of its own.
    """
    rows: list[Row] = []
    builder = _Builder()
    for tree, tree_terms in zip(trees, terms, strict=True):
        for part in split(tree, tree_terms, max_tokens):
            if builder.tokens and len(builder.tokens) + part.size > max_tokens:
                rows.append(builder.row())
                builder = _Builder()
            builder.add(part)
    return [*rows, builder.row()] if builder.tokens else rows
