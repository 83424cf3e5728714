"""The splits that every source has, and tasks drawn from a fixed set."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TypeVar

SPLITS = ("train", "L0", "L1", "L2")
T = TypeVar("T")


def check_split(split: str) -> None:
    """Raise ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split: unknown {split!r}; choose among {', '.join(SPLITS)}")


def drawn(tasks: Iterable[T], split: str, count: int, seed: int) -> list[T]:
    """Return `count` of `tasks` in an order fixed by split and seed, repeated if too few."""
    order = list(tasks)
    Random(f"{split}/{seed}").shuffle(order)
    return [order[index % len(order)] for index in range(count)]
