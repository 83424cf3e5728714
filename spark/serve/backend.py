"""The port behind which an engine hides from the server: leaves that stream, fork and end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from spark.engines.base import FinishReason, SamplingParams

ForkPath = Literal["exact", "cache", "recompute"]
"""How a child got its prefix: shared with the parent's live KV (at most one token computed again),
partly found in the engine's own prefix cache, or computed again."""


@dataclass(kw_only=True, slots=True, frozen=True)
class LeafRequest:
    """One generation to run; it never knows that it is part of a tree.

    Example:
        LeafRequest(id="tree-ab12/3", tokens=[5, 8, 2, 9], prompt_length=2, fork_at=4,
                    parent="tree-ab12/0", params=SamplingParams(max_tokens=60, seed=7))
    """

    id: str
    """Unique in the server's life; what later requests name as `parent`."""
    tokens: Sequence[int]
    """Everything before the first new token."""
    prompt_length: int
    """`tokens[prompt_length:]` count as output (penalties, stop strings, positions of seeds), as
    if this leaf had sampled them itself."""
    params: SamplingParams
    """`max_tokens` counts the tokens still to come. At `watch` the leaf may end with the finish
    reason "trigger"; where an engine cannot do so, the server cuts off what comes behind it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that only some engines honour: those that `Backend.options` names."""
    parent: str | None = None
    """Leaf that shares the first `fork_at` tokens; it may be running, finished or aborted."""
    fork_at: int | None = None
    """Between 1 and `len(tokens)`; tokens behind it were given by the client (a tool's answer)."""


@dataclass(kw_only=True, slots=True)
class Fork:
    """What a child's prefix cost."""

    path: ForkPath
    recomputed: int = 0
    """Tokens below `fork_at` that were computed again."""


@dataclass(kw_only=True, slots=True)
class Delta:
    """New tokens of a leaf, one or several; the four lists have equal length, values in nats.

    The statistics mean what they mean in `spark.engines.base.Sample`.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    log_kept_mass: list[float] = field(default_factory=list)
    allowed: dict[int, list[int]] = field(default_factory=dict)
    """Offset in `tokens` -> ids that the constraint allowed there."""
    finish_reason: FinishReason | None = None
    """In the last delta of a leaf only."""
    fork: Fork | None = None
    """In the first delta of a leaf that has a parent."""
    weight_version: int = 0

    def first(self, count: int, finish_reason: FinishReason) -> Delta:
        """Return the first `count` tokens as a delta that ends the leaf."""
        return replace(
            self,
            tokens=self.tokens[:count],
            logprobs=self.logprobs[:count],
            entropies=self.entropies[:count],
            log_kept_mass=self.log_kept_mass[:count],
            allowed={at: ids for at, ids in self.allowed.items() if at < count},
            finish_reason=finish_reason,
        )


class Backend(Protocol):
    """What an engine offers a server; one object serves all trees, on one event loop.

    Raises `ValueError` from `generate` (before the first delta) for what the engine cannot
    honour, any other exception when the engine failed.
    """

    @property
    def name(self) -> str:
        """Name of the engine, e.g. "vllm"."""
        ...

    @property
    def model(self) -> str:
        """Name that clients know the model by."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further names that clients may know it by."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a sequence may have."""
        ...

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation unless the client says otherwise."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the engine answers nothing any more; None while it does."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """Names of request fields that `LeafRequest.options` may carry."""
        ...

    @property
    def constrains(self) -> bool:
        """Whether `SamplingParams.constraint` is honoured."""
        ...

    def generate(self, request: LeafRequest) -> AsyncGenerator[Delta, None]:
        """Stream a leaf's new tokens until the delta that has a finish reason.

        Closing the generator stops the leaf, as `abort` does.
        """
        ...

    async def abort(self, ids: Iterable[str]) -> None:
        """Stop leaves that run; their KV stays a source of forks. Finished ones are no error."""
        ...

    async def release(self, ids: Iterable[str]) -> None:
        """Drop every hold on the KV of these leaves, all of one tree; running ones stop."""
        ...

    def stats(self) -> Mapping[str, int]:
        """Return the engine's counters, those of `spark.engines.base.Engine.stats` it knows."""
        ...
