"""What a request is made of while it runs: leaves, their wishes to branch, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.engines.base import FinishReason
from spark.engines.text import Matcher
from spark.serve.backend import Delta
from spark.serve.nodes import ServedNode


def leaf_id(run: str, index: int) -> str:
    """Return the engine's id of leaf `index` of the request named `run`."""
    return f"{run}.{index}"


@dataclass(kw_only=True, slots=True, eq=False)
class Leaf:
    """One generation while it runs, and what it became."""

    id: str
    index: int
    """Place among the request's choices, in the order of birth."""
    lineage: tuple[int, ...]
    """Which root, then which child at each fork: a name that timing does not change."""
    tokens: list[int]
    """Of the whole path."""
    node: ServedNode
    """The piece being written; the ones above it are finished."""
    inherited: int
    """Tokens of this request's output that it shares with the leaf it was forked from."""
    tags: Matcher | None
    place: int
    """Tokens of the path that the rule has seen."""
    finish_reason: FinishReason | None = None
    forked_at: float = 0.0
    """When the fork was decided, on the monotonic clock; 0 for a root."""

    @property
    def depth(self) -> int:
        """Forks on its path."""
        return len(self.lineage) - 1


@dataclass(slots=True, order=True)
class Wish:
    """A state that the rule may want to branch at; ordered by (place, lineage)."""

    place: int
    lineage: tuple[int, ...]
    leaf: Leaf = field(compare=False)
    fork_at: int = field(compare=False)
    trigger: str = field(compare=False)


@dataclass(kw_only=True, slots=True)
class Event:
    """A leaf was born (`delta` is None) or has grown."""

    leaf: Leaf
    delta: Delta | None = None


@dataclass(kw_only=True, slots=True)
class Cost:
    """What a request cost, in tokens."""

    prompt: int = 0
    generated: int = 0
    """Sampled, each once."""
    shared: int = 0
    """Output tokens that forked leaves did not have to sample again."""
    recomputed: int = 0
    """Computed again because of forks and continuations."""
