"""A small deterministic text game with real forks: find the key, pass the doors, open the last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from spark.envs.base import Determinism, ForkKind

DOORS = ("left", "right")


class Corridor:
    """Rooms 0..length in a row; each has two doors, one of which leads to a dead end.

    The task "corridor/<length>/<code>" says how long it is; bit i of the code is the right door of
    room i, and the key lies in room code % length. Opening the last room's door wins.
    """

    fork_kind: ForkKind = "copy"
    determinism: Determinism = "exact"

    def __init__(self) -> None:
        self.closed = False
        self.actions: list[str] = []

    def reset(self, task: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
        name, _, rest = task.partition("/")
        if name != "corridor":
            raise ValueError(f"unknown task {task!r}")
        self.length, self.code = (int(part) for part in rest.split("/"))
        self.room, self.astray, self.has_key, self.won = 0, False, False, False
        return f"find the key and open the last door . {self._look()}", self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        if action not in self._admissible():
            return "nothing happens .", 0.0, False, False, self._info()
        if action == "take key":
            self.has_key = True
        elif action == "open door":
            self.won = True
        elif action == "go back":
            self.astray = False
        elif action.startswith("go "):
            right = DOORS[self.code >> self.room & 1]
            self.astray = action != f"go {right}"
            self.room += not self.astray
        return self._look(), float(self.won), self.won, False, self._info()

    def snapshot(self) -> tuple[Any, ...]:
        return (self.length, self.code, self.room, self.astray, self.has_key, self.won)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        self.length, self.code, self.room, self.astray, self.has_key, self.won = snapshot

    def fork(self) -> Corridor:
        twin = type(self)()
        twin.restore(self.snapshot())
        twin.actions = list(self.actions)
        return twin

    def close(self) -> None:
        self.closed = True

    def _key_here(self) -> bool:
        return not (self.has_key or self.astray) and self.room == self.code % self.length

    def _admissible(self) -> tuple[str, ...]:
        if self.won:
            return ()
        if self.astray:
            return ("go back", "look")
        doors = tuple(f"go {door}" for door in DOORS) if self.room < self.length else ()
        key = ("take key",) if self._key_here() else ()
        last = ("open door",) if self.has_key and self.room == self.length else ()
        return (*doors, *key, *last, "look")

    def _look(self) -> str:
        where = "a dead end" if self.astray else f"room {self.room}"
        key = " there is a key ." if self._key_here() else ""
        return f"you are in {where} .{key}"

    def _info(self) -> dict[str, Any]:
        return {"admissible": self._admissible(), "won": self.won}


class SlowCorridor(Corridor):
    """Steps asynchronously, as environments in other processes do."""

    async def step_async(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        await asyncio.sleep(0.001 * (len(self.actions) % 3))
        return self.step(action)


class PlainCorridors:
    """Makes corridors; can be sent to another process."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        return [f"corridor/{4 + (seed + i) % 3}/{(seed + i) * 5 % 16}" for i in range(count)]

    def make(self) -> Corridor:
        return Corridor()


class CorridorSource(PlainCorridors):
    """Makes corridors and remembers them, to see that all are closed."""

    def __init__(self, kind: type[Corridor] = Corridor) -> None:
        self.kind = kind
        self.made: list[Corridor] = []

    def make(self) -> Corridor:
        source = self

        # which class it extends is known when it runs
        class Tracked(self.kind):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                source.made.append(self)

        return Tracked()
