"""Which ScienceWorld tasks are played, how, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(kw_only=True, slots=True, frozen=True)
class ScienceWorldOptions:
    """Task types and the simulators that play them.

    Splits: "train" has the official training variations of `tasks`, "L0" the official development
    variations and "L1" the official test variations of the same; "L2" has the official test
    variations of `held_out`.

    Example:
        ScienceWorldOptions(tasks=("boil", "melt"), held_out=("freeze",))
    """

    tasks: tuple[str, ...] = (
        "find-animal",
        "find-living-thing",
        "find-plant",
        "lifespan-longest-lived",
        "lifespan-shortest-lived",
    )
    """Task types of train, L0 and L1."""
    held_out: tuple[str, ...] = (
        "find-non-living-thing",
        "lifespan-longest-lived-then-shortest-lived",
    )
    """Task types of L2 only."""
    simplifications: str = "easy"
    """ScienceWorld's own, separated by commas, e.g. "teleportAction,openDoors"; "" = none."""
    simulators: int = 64
    """Simulators of one process at most, each a trajectory or a spare; up to 24 MB of the Java
    heap each."""
    spares: int = 2
    """Simulators kept ready at the start of a task that was forked: the next fork need not wait."""

    def __post_init__(self) -> None:
        for name in ("tasks", "held_out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name a task type such as find-plant")
        if both := sorted(set(self.tasks) & set(self.held_out)):
            raise ValueError(f"held_out: {both[0]!r} is among tasks too; remove it once")
        for name, least in (("simulators", 1), ("spares", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


class TaskName(NamedTuple):
    """A variation of a task type under simplifications, e.g. `find-plant/12@easy`."""

    kind: str
    variation: int
    simplifications: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.variation}@{self.simplifications}"

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Read a name back. Raises ValueError when it is none."""
        path, at, simplifications = text.partition("@")
        kind, _, variation = path.partition("/")
        if not (kind and at and variation.isdecimal()):
            raise ValueError(f"task {text!r} is none of ScienceWorld; expected find-plant/12@easy")
        return cls(kind, int(variation), simplifications)
