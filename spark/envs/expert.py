"""Demonstrations: what an environment's expert saw and did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


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
