"""From a request to what is to run: the place in the tree, the rule, the checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spark.branching.base import BranchRule
from spark.core import Watch
from spark.engines.base import SamplingParams, TokenConstraint
from spark.serve.backend import Backend
from spark.serve.leaf import leaf_id
from spark.serve.nodes import ServedNode, ServedTree, given
from spark.serve.protocol import Branching, RequestError

Constrain = Callable[[list[int]], TokenConstraint]
"""Makes a leaf's own constraint; takes the output tokens that the leaf starts with."""


@dataclass(kw_only=True, slots=True)
class Request:
    """One generation request, whichever route it came by."""

    tokens: list[int]
    """The prompt, or with `branching.tree` what is new behind the leaf."""
    n: int
    params: SamplingParams
    """`constraint` is None: every leaf gets its own from `constrain`."""
    branching: Branching
    options: dict[str, Any] = field(default_factory=dict)
    constrain: Constrain | None = None
    prefill: bool = False
    """Only compute the tokens, to be continued later; what `params` says does not matter."""


@dataclass(kw_only=True, slots=True)
class Plan:
    """What one request wants, whichever route it came by; checked already."""

    tokens: list[int]
    """Everything before the first new token."""
    output_start: int
    """Where the run of sampled tokens begins that ends `tokens`; their length where none does."""
    parent: ServedNode
    """Node that the generations hang on."""
    source: str | None = None
    """Leaf that shares the first `shared` tokens, when a tree is continued."""
    shared: int | None = None
    n: int = 1
    roots: int = 1
    max_depth: int | None = None
    rule: BranchRule
    params: SamplingParams
    """Seed and max_tokens are those of root 0."""
    options: dict[str, Any] = field(default_factory=dict)
    constrain: Constrain | None = None
    prefill: bool = False
    """One token is sampled, because engines want it so, and thrown away."""
    pause: Watch | None = None
    """Where a leaf ends with the finish reason "trigger"."""


def make_plan(tree: ServedTree, name: str, request: Request, backend: Backend) -> Plan:
    """Return what to run as the request `name` on `tree`.

    Raises RequestError where it does not fit the tree or the model.
    """
    branching, n = request.branching, request.n
    policy = branching.policy or tree.policy
    roots = branching.roots or (n if policy == "none" else 1)
    if roots > n:
        raise RequestError(
            f"branching.roots={roots} exceeds the leaf budget n={n}", param="branching.roots"
        )
    if policy == "none":
        _check_chains(branching, n)
    parent, before = _place(tree, branching)
    tokens = before + request.tokens
    _check_tokens(request.tokens, len(tokens), backend)
    shared, source, output_start = None, None, len(tokens)
    if parent is not None:
        shared, source = len(before), parent.leaf
        if not request.tokens:
            output_start = _sampled_from(parent, len(before))
    if request.tokens:
        parent = given(request.tokens, parent, len(before), leaf_id(name, 0))
    assert parent is not None
    return Plan(
        tokens=tokens,
        output_start=output_start,
        parent=parent,
        source=source,
        shared=shared,
        n=n,
        roots=roots,
        max_depth=branching.max_depth,
        rule=branching.rule(policy),
        params=request.params,
        options=request.options,
        constrain=request.constrain,
        prefill=request.prefill,
        pause=_pause(branching, policy),
    )


def _check_chains(branching: Branching, n: int) -> None:
    """Raise RequestError for what only forks could honour."""
    for name, wrong in (
        ("max_depth", branching.max_depth is not None),
        ("roots", branching.roots not in (None, n)),
    ):
        if wrong:
            raise RequestError(
                f'branching.{name} has no meaning for policy "none", which forks nothing: leave it '
                "out",
                param=f"branching.{name}",
            )


def _pause(branching: Branching, policy: str) -> Watch | None:
    wanted = branching.pause
    if wanted is None:
        return None
    if policy != "none":
        raise RequestError(
            f'branching.pause needs branching.policy="none": {policy!r} forks by itself',
            param="branching.pause",
        )
    return Watch(tags=tuple(wanted.tags), entropy_above=wanted.entropy_above)


def tokens_before(tree: ServedTree, branching: Branching) -> list[int]:
    """Return the tokens behind which `branching` continues `tree`."""
    return _place(tree, branching)[1]


def _place(tree: ServedTree, branching: Branching) -> tuple[ServedNode | None, list[int]]:
    """Return the node to continue and the path's tokens up to there."""
    if branching.tree is None:
        return None, []
    at = branching.from_node
    assert at is not None
    if at >= len(tree.nodes):
        raise RequestError(
            f"branching.from={at}: tree {tree.id} has {len(tree.nodes)} nodes, from 0",
            param="branching.from",
        )
    node = tree.nodes[at]
    tokens = node.tokens()
    fork_at = len(tokens) if branching.fork_at is None else branching.fork_at
    if fork_at > len(tokens):
        raise RequestError(
            f"branching.fork_at={fork_at}: the path to node {at} has {len(tokens)} tokens",
            param="branching.fork_at",
        )
    while fork_at <= node.start and node.parent is not None:
        node = node.parent
    tokens = tokens[:fork_at]
    if branching.prefix is not None and branching.prefix != tokens:
        pairs = zip(branching.prefix, tokens, strict=False)
        differs = [i for i, (theirs, ours) in enumerate(pairs) if theirs != ours]
        where = differs[0] if differs else min(len(branching.prefix), fork_at)
        raise RequestError(
            f"branching.prefix ({len(branching.prefix)} tokens) is not what the tree holds "
            f"({fork_at} tokens): they differ from token {where} on",
            param="branching.prefix",
        )
    return node, tokens


def _check_tokens(tokens: list[int], total: int, backend: Backend) -> None:
    if total == 0:
        raise RequestError("prompt is empty: give at least one token", param="prompt")
    if tokens and not 0 <= min(tokens) <= max(tokens) < backend.vocab_size:
        raise RequestError(
            f"prompt has a token id outside [0, {backend.vocab_size}): "
            f"{min(tokens)}..{max(tokens)}",
            param="prompt",
        )
    if total > backend.context:
        raise RequestError(
            f"prompt makes a sequence of {total} tokens, which exceeds the model's context of "
            f"{backend.context}",
            param="prompt",
        )


def _sampled_from(node: ServedNode, end: int) -> int:
    """Return where the run of sampled tokens begins that ends at `end` of the path to `node`."""
    start = end
    for each in reversed(node.path()):
        if not any(each.node.sampled):
            break
        start = each.start
    return start
