"""State of live sequences and of what callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spark.engines.base import FinishReason, Sample, SamplingParams
from spark.engines.text import Matcher

OnToken = Callable[[Sample, FinishReason | None], None]
"""Told of every token: the sample so far, and why it ends if it does."""


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """Append-only tokens and how much of their KV is in the pool."""

    id: int
    """Also its age: requests of older sequences go first."""
    tokens: list[int]
    sampled: bytearray
    """1 where the policy sampled the token."""
    computed: int = 0
    """Tokens whose KV and hidden states are in the pool."""
    ever_computed: int = 0
    """Most tokens that ever were; computing below it again is recomputation."""
    handle: int | None = None
    """In the block pool; None while nothing is there."""
    slot: int = -1
    """Of the last computed token."""
    request: Request | None = None
    """What its owner waits for; one at a time."""
    last_used: int = 0
    """Step in which it was last computed or sampled."""


@dataclass(kw_only=True, slots=True, eq=False)
class Generation:
    """One `sample` call in progress."""

    params: SamplingParams
    sample: Sample = field(default_factory=Sample)
    stop: Matcher | None = None
    tags: Matcher | None = None
    on_token: OnToken | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """Compute the tokens of `seq` below `target`; then finish, or go on sampling."""

    seq: Sequence
    target: int
    future: asyncio.Future[Any]
    generation: Generation | None = None
    """None = compute only."""
    finish: Callable[[], Any] | None = None
    """Called once the target is computed; gives the result."""

    @property
    def missing(self) -> int:
        """Tokens still to compute before the target is reached."""
        return self.target - self.seq.computed
