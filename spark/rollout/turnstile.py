"""Lets the trajectories of one tree ask in an order that timing cannot change."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

Place = tuple[int, tuple[int, ...]]


class Turnstile:
    """Keeps, for everybody who may still ask, the earliest place (turn, lineage) they may ask at.

    Only those who ask wait, and only while somebody else could still ask for an earlier place.
    """

    def __init__(self) -> None:
        self._places: dict[Hashable, Place] = {}
        self._moved = asyncio.Event()

    def move(self, who: Hashable, turn: int, lineage: tuple[int, ...]) -> None:
        """Say that `who` will not ask before (turn, lineage); places only ever grow."""
        self._places[who] = (turn, lineage)
        self._wake()

    def leave(self, who: Hashable) -> None:
        """Say that `who` will not ask any more."""
        self._places.pop(who, None)
        self._wake()

    async def first(self, who: Hashable) -> None:
        """Return when nobody can ask for an earlier place than `who`'s."""
        while min(self._places.values()) < self._places[who]:
            await self._moved.wait()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
