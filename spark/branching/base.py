"""Branching: a rule says how many continuations a state deserves, a budget how many it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from spark.core import Watch


@dataclass(kw_only=True, slots=True, frozen=True)
class State:
    """What a rule may look at after a decision was sampled and executed."""

    text: str
    """Text of the decision."""
    entropies: list[float]
    """Entropy of each of its tokens, nats."""
    turn: int
    """Index of the decision, from 0."""
    horizon: int
    """Decisions a trajectory may take."""
    lineage: tuple[int, ...]
    """Which child was taken at each branching from the root on: a name for the trajectory."""
    seed: int
    """Seed of the tree; with `lineage` and `turn` it makes random rules repeatable."""
    sample_trigger: str | None = None
    """The engine's mid-generation trigger, when sampling paused at one."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decision:
    """A rule's wish: `width` continuations in all (1 = go on alone), and why."""

    width: int = 1
    trigger: str | None = None


class BranchRule(Protocol):
    """Decides where a trajectory is worth more than one continuation."""

    watch: Watch | None
    """Mid-generation trigger to hand to the engine; None = decide only between turns."""

    def decide(self, state: State) -> Decision:
        """Return how many continuations `state` deserves."""
        ...


class Budget(Protocol):
    """Counts what a tree may still spend; one budget object serves one tree."""

    def grant(self, wanted: int, *, turn: int, lineage: tuple[int, ...]) -> int:
        """Reserve and return up to `wanted` additional leaves (0 = do not branch)."""
        ...

    def spend(self, *, tokens: int, seconds: float) -> None:
        """Record what was spent."""
        ...

    def exhausted(self) -> bool:
        """Return True when tokens or seconds have run out and trajectories must end."""
        ...
