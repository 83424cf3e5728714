"""Branching: a rule says how many continuations a state deserves, a budget how many it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from spark.core import Watch

BranchAt = Literal["next", "flagged", "within"]
"""What a branching state gets several of: the next decision (the flagged one is executed once),
the flagged decision itself, or what follows the engine's mid-generation trigger."""


@dataclass(kw_only=True, slots=True, frozen=True)
class State:
    """What a rule may look at after a decision, or a part of one, was sampled."""

    text: str
    """Text of the decision so far."""
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
    observations: tuple[str, ...] = ()
    """What the environment said so far on the path; the copies would answer the last one."""
    first_entropies: tuple[float, ...] = ()
    """Entropy of each token of the path's first decision, nats."""
    path_sampled: int = 0
    """Tokens sampled on the path."""
    max_entropy: float = float("inf")
    """Entropy of the uniform distribution over the vocabulary, nats."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decision:
    """A rule's wish: `width` continuations in all (1 = go on alone), and why."""

    width: int = 1
    trigger: str | None = None


class BranchRule(Protocol):
    """Decides where a trajectory is worth more than one continuation.

    Rules are dataclasses; `RolloutConfig` fills the fields that it has under the same name. A rule
    that must wait for its answer has a coroutine `decide_async` beside `decide`.
    """

    @property
    def watch(self) -> Watch | None:
        """Mid-generation trigger used with `branch_at="within"`; None = the rule has none."""
        ...

    def decide(self, state: State) -> Decision:
        """Return how many continuations `state` deserves."""
        ...


@dataclass(kw_only=True, slots=True, frozen=True)
class Spot:
    """A state that trajectories which have ended went through: they may be continued from it."""

    lineage: tuple[int, ...]
    """Of the trajectory that went on from it; the prompt, from where all start, has ()."""
    turn: int
    """The decision taken there, from 0."""
    entropies: list[float]
    """Entropy of each token of that decision, nats; none for the prompt."""
    grown: int = 0
    """How many trajectories a planner has started there already."""
    won: bool = False
    """Whether the trajectory that went on from it has won."""
    seed: int
    """Seed of the tree."""


class Planner(Protocol):
    """Grows a finished tree further, in rounds: each sees what the rounds before it have added.

    Planners are dataclasses; `RolloutConfig` fills the fields that it has under the same name.
    """

    trigger: str
    """Why: noted on the node that is grown from."""

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        """Return the spots (by index, the same one several times or not) to grow from.

        `spots` come in the order (turn, lineage), the prompt first; `spare` leaves are left, and
        what is beyond them is ignored; `number` counts the rounds from 0. [] ends the growing.
        """
        ...


class Budget(Protocol):
    """Counts what a tree may still spend; one budget object serves one tree."""

    leaf_tokens: int | None
    """Tokens one leaf may sample beyond what it shares at birth; None = no limit."""

    def available(self, *, turn: int, lineage: tuple[int, ...]) -> int:
        """Return how many more leaves may start here; for one turn it never rises again."""
        ...

    def grant(self, wanted: int, *, turn: int, lineage: tuple[int, ...]) -> int:
        """Reserve and return up to `wanted` additional leaves (0 = do not branch)."""
        ...

    def close(self) -> None:
        """Grant nothing more: what is left is for trajectories that start anew."""
        ...

    def expired(self) -> bool:
        """Return True when the time is up and trajectories must end."""
        ...
