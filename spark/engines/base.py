"""The engine protocol: sequences of append-only tokens that can be sampled and forked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol

from spark.core import Watch

FinishReason = Literal["stop", "length", "trigger", "context"]


class TokenConstraint(Protocol):
    """Limits the next token, e.g. to the admissible commands of an environment."""

    def allowed(self, generated: Sequence[int]) -> Sequence[int] | None:
        """Return the token ids that may follow `generated` (the tokens since `sample` was called).

        None = no limit here. An empty answer is an error of the constraint.
        """
        ...


LEAST_TEMPERATURE, LEAST_TOP_P = 1e-5, 1e-9
"""Below these float32 logits, or the mass kept of them, are no numbers any more."""


@dataclass(kw_only=True, slots=True, frozen=True)
class SamplingParams:
    """How to sample one continuation. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    """0 = off."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """With the position in the sequence it fixes the random number of every token."""
    stop: tuple[str, ...] = ()
    """Stop right after the token that completes one of these strings; the string is kept."""
    stop_token_ids: tuple[int, ...] = ()
    constraint: TokenConstraint | None = None
    watch: Watch | None = None

    def __post_init__(self) -> None:
        for names, kind in ((_WHOLE, Integral), (_REAL, Real)):
            for name in names:
                _check_number(name, getattr(self, name), kind)
        for token in self.stop_token_ids:
            _check_number("stop_token_ids", token, Integral)
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 1e6:
            raise ValueError(
                f"temperature must be 0 (greedy) or in [{LEAST_TEMPERATURE}, 1e6], "
                f"got {self.temperature}"
            )
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be in [0, 2**31) (0 = off), got {self.top_k}")
        if not LEAST_TOP_P <= self.top_p <= 1.0:
            raise ValueError(f"top_p must be in [{LEAST_TOP_P}, 1] (1 = off), got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1] (0 = off), got {self.min_p}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")


_WHOLE, _REAL = ("max_tokens", "top_k", "seed"), ("temperature", "top_p", "min_p")


def _check_number(name: str, value: Any, kind: type) -> None:
    """Raise ValueError where `value` is not a number of this kind: True is none."""
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = "whole numbers" if kind is Integral else "numbers"
        raise ValueError(f"{name} takes {wanted}, got {value!r}")


@dataclass(kw_only=True, slots=True)
class Sample:
    """What one `sample` call added; the lists have equal length, values are in nats.

    Example:
        Sample(tokens=[5, 8], logprobs=[-0.3, -2.0], entropies=[0.9, 2.2],
               log_kept_mass=[0.0, -0.1], allowed={}, finish_reason="stop", weight_version=3)
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Over the full tempered vocabulary; the draw's own is `logprobs - log_kept_mass`."""
    entropies: list[float] = field(default_factory=list)
    """Over the full vocabulary at temperature 1."""
    log_kept_mass: list[float] = field(default_factory=list)
    allowed: dict[int, list[int]] = field(default_factory=dict)
    """Offset in `tokens` -> ids the constraint allowed there."""
    finish_reason: FinishReason = "stop"
    trigger: str | None = None
    """Set when `finish_reason` is "trigger": "entropy" or the tag that was completed."""
    weight_version: int = 0


class EngineError(RuntimeError):
    """One request failed, e.g. with NaN logits; other requests go on."""


class ContextError(ValueError):
    """The tokens do not fit into the model's context; the sequence is as it was."""


class Engine(Protocol):
    """Holds the KV cache of live sequences. `seq` is an opaque integer handle."""

    async def open(self, tokens: Sequence[int]) -> int:
        """Prefill `tokens` and return a handle; its KV lives until `release`."""
        ...

    async def extend(self, seq: int, tokens: Sequence[int]) -> None:
        """Append environment tokens to `seq`. Raises ContextError when they do not fit."""
        ...

    async def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        """Return `n` copy-on-write children that share the first `at` tokens (default: all)."""
        ...

    async def sample(self, seq: int, params: SamplingParams) -> Sample:
        """Sample a continuation; the sampled tokens are appended to `seq`."""
        ...

    async def release(self, seq: int) -> None:
        """Drop `seq` and free the blocks nobody else holds."""
        ...

    async def update_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Load `state` (name -> tensor) as version `version`. Live sequences must be released."""
        ...

    def length(self, seq: int) -> int:
        """Return the number of tokens of `seq`."""
        ...

    def stats(self) -> dict[str, int]:
        """Return the counters, in tokens unless the name says otherwise.

        generated: sampled; prefilled: given and computed; reused: sampled tokens of a shared
        prefix that a forked child did not have to sample again; recomputed: computed more than
        once; forks: children made; blocks_in_use; blocks_copied; preemptions.
        """
        ...
