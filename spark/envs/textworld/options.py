"""Which TextWorld games are generated, and how they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from spark.envs.splits import SPLITS
from spark.seeds import derive_seed

LEVELS = {"treasure_hunter": 30, "coin_collector": 300}
"""Challenge -> its highest level."""
NAME = re.compile(
    rf"({'|'.join(SPLITS)})/([0-9]+)/([0-9]+)@({'|'.join(LEVELS)})-([0-9]+)(-directions)?"
)


@dataclass(kw_only=True, slots=True, frozen=True)
class TextWorldOptions:
    """The challenge and its levels.

    Splits: "train" and "L0" have games of `challenge` at `level`, of different seeds; "L1" the same
    challenge at `harder_level`; "L2" `other_challenge` at `level`.

    Example:
        TextWorldOptions(level=3, harder_level=13)
    """

    challenge: str = "treasure_hunter"
    """treasure_hunter or coin_collector."""
    level: int = 5
    """Of treasure hunts: 1-10 five empty rooms, 11-20 ten rooms with doors and containers, 21-30
    twenty rooms with locks; each ten are ordered by the length of the way. Of coin collectors: the
    number of rooms on the way."""
    harder_level: int = 13
    other_challenge: str = "coin_collector"
    directions: bool = False
    """Tell the player the whole way in the first text, not only what to find."""

    def __post_init__(self) -> None:
        for name in ("challenge", "other_challenge"):
            if getattr(self, name) not in LEVELS:
                known = ", ".join(LEVELS)
                raise ValueError(f"{name}: unknown {getattr(self, name)!r}; choose among {known}")
        if self.challenge == self.other_challenge:
            raise ValueError(f"other_challenge is {self.challenge!r} too; L2 needs another one")
        most = {"harder_level": LEVELS[self.challenge]}
        # games of L2 have it too
        most["level"] = min(LEVELS[self.challenge], LEVELS[self.other_challenge])
        for name, highest in most.items():
            if not 1 <= getattr(self, name) <= highest:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [1, {highest}]")


class TaskName(NamedTuple):
    """A generated game, e.g. `L0/0/17@treasure_hunter-5`: it fixes the game down to every word."""

    split: str
    seed: int
    number: int
    challenge: str
    level: int
    directions: bool

    def __str__(self) -> str:
        kind = f"{self.challenge}-{self.level}" + "-directions" * self.directions
        return f"{self.split}/{self.seed}/{self.number}@{kind}"

    @property
    def game_seed(self) -> int:
        """Seed of TextWorld's generator, 31 bits."""
        return derive_seed("textworld", str(self)) % 2**31

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Read a name back. Raises ValueError when it is none."""
        found = NAME.fullmatch(text)
        if found is None or not 1 <= int(found[5]) <= LEVELS[found[4]]:
            raise ValueError(
                f"task {text!r} is no TextWorld game; expected e.g. L0/0/17@treasure_hunter-5"
            )
        split, seed, number, challenge, level, directions = found.groups()
        return cls(split, int(seed), int(number), challenge, int(level), directions is not None)
