"""Demonstrations: what an environment's expert saw and did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable


class ExpertStep(NamedTuple):
    """What the expert saw and did."""

    observation: str
    action: str
    explorative: bool
    """True where the expert goes somewhere to look for a thing it has not seen yet."""
    subgoal: str
    """What the step serves, e.g. "find mug", "heat mug", "put countertop"."""
    admissible: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Episode:
    """An expert's way through one game."""

    steps: list[ExpertStep] = field(default_factory=list)
    won: bool = False
    ending: str
    """The observation after the last step."""


@runtime_checkable
class Demonstrator(Protocol):
    """A source of tasks with an expert, for a cold start."""

    def experts(
        self, tasks: Sequence[str], *, max_steps: int, seed: int, detours: float
    ) -> Iterator[Episode]:
        """Yield an episode for each task, won or not; `detours` is the share of steps that are not
        the expert's own but harmless ones at random.
        """
        ...

    def texts(self, seed: int) -> Iterator[str]:
        """Yield what may be said and commanded where no expert goes, for a vocabulary."""
        ...
