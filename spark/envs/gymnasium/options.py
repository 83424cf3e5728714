"""Which Gymnasium environments are played, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(kw_only=True, slots=True, frozen=True)
class GymnasiumOptions:
    """Environments by their registered ids, and who puts them into words.

    Splits: "train" and "L0" have different seeds of `seen`, "L1" seeds of `unseen` and "L2" seeds
    of `other`.

    Example:
        GymnasiumOptions(seen=("FrozenLake-v1",), unseen=("FrozenLake8x8-v1",),
            other=("Taxi-v4",), module="", words="spark.envs.gymnasium.words:Words")
    """

    seen: tuple[str, ...] = ("MiniGrid-DoorKey-5x5-v0",)
    """Ids of train and L0."""
    unseen: tuple[str, ...] = ("MiniGrid-DoorKey-8x8-v0",)
    """Ids of L1, e.g. larger ones."""
    other: tuple[str, ...] = ("MiniGrid-UnlockPickup-v0",)
    """Ids of L2, e.g. another task."""
    module: str = "minigrid"
    """Imported first, because that registers the ids; "" = none."""
    words: str = "spark.envs.gymnasium.minigrid:MiniGridWords"
    """module:Class that turns observations into text and commands into actions; see
    `spark.envs.gymnasium.words:Words`, which serves where both are text or numbers."""

    def __post_init__(self) -> None:
        for name in ("seen", "unseen", "other"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name a registered environment")


class TaskName(NamedTuple):
    """An environment and its seed, e.g. `MiniGrid-DoorKey-5x5-v0/17`."""

    id: str
    seed: int

    def __str__(self) -> str:
        return f"{self.id}/{self.seed}"

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Read a name back. Raises ValueError when it is none."""
        name, _, seed = text.rpartition("/")
        if not (name and seed.isdecimal()):
            raise ValueError(
                f"task {text!r} is no Gymnasium task; expected id/seed, e.g. Taxi-v4/3"
            )
        return cls(name, int(seed))
