"""One trajectory in one game."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from spark.envs.alfworld.engine import Game, Position
from spark.envs.base import Determinism, ForkKind

IDLE = ("look", "inventory", "help", "examine")


class Snapshot(NamedTuple):
    """A state of a loaded game; it cannot leave the process (replay the actions there)."""

    task: str
    game: Game
    position: Position


class AlfworldEnv:
    """A place in a game's graph of positions, so a fork is another reference to the same place.

    The reward is 1.0 with the command that solves the task and 0.0 before. The engine has no
    horizon of its own: nothing is ever truncated.
    """

    fork_kind: ForkKind = "state"
    determinism: Determinism = "exact"

    def __init__(self, load: Callable[[str], Game], *, idle_commands: bool = True) -> None:
        """`load` turns a task's name into its game; without `idle_commands` those that change
        nothing in the world (look, inventory, help, examine) are not listed as admissible.
        """
        self._load = load
        self._idle_commands = idle_commands
        self._at: Snapshot | None = None

    def reset(self, task: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
        """Start `task`; the seed changes nothing, the name fixes the whole game."""
        game = self._load(task)
        self._at = Snapshot(task, game, game.start)
        return game.intro, self._info(game.start)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; a command that is not admissible is answered with "Nothing happens."."""
        at = self.snapshot()
        text, position = at.game.move(at.position, action)
        self._at = at._replace(position=position)
        return text, float(position.won), position.won, False, self._info(position)

    def snapshot(self) -> Snapshot:
        """Return the current state, valid for every environment of this process."""
        if self._at is None:
            raise ValueError("the environment was not reset yet; call reset(task) first")
        return self._at

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to `snapshot`."""
        self._at = snapshot

    def fork(self) -> AlfworldEnv:
        """Return a second environment in the same state."""
        child = AlfworldEnv(self._load, idle_commands=self._idle_commands)
        child._at = self._at
        return child

    def close(self) -> None:
        """Let go of the game."""
        self._at = None

    def _info(self, position: Position) -> dict[str, Any]:
        commands = [
            command
            for command in position.admissible
            if self._idle_commands or not command.startswith(IDLE)
        ]
        return {"admissible": commands, "won": position.won}
