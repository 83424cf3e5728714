"""One trajectory in one game."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import textworld
from jericho.jericho import UnsupportedGameWarning
from textworld.generator.game import Game

from spark.envs.base import ForkKind
from spark.envs.replay import ReplayMixin

COPY_FROM = 50
"""Steps from which on TextWorld's copy (about as long at any depth) beats a replay; measured by
`benchmarks/envs.py`."""
ASKED = textworld.EnvInfos(
    admissible_commands=True, objective=True, won=True, lost=True, score=True, max_score=True
)


class TextWorldEnv(ReplayMixin):
    """The stock environment. The rewards of an episode add up to its share of the highest score."""

    def __init__(self, find: Callable[[str], Path]) -> None:
        """`find` turns a task's name into its story file, or raises ValueError."""
        self._find = find
        self._game: Any = None
        self._score = 0

    # an attribute of the protocol that is read only; here it depends on the depth
    @property
    def fork_kind(self) -> ForkKind:  # type: ignore[override]
        """Replay near the start, copy beyond."""
        deep = self._record is not None and len(self._record.steps) >= COPY_FROM
        return "copy" if deep else "replay"

    def begin(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Start `task`; the seed changes nothing, the name fixes the whole game."""
        path = self._find(task)
        self.close()
        with warnings.catch_warnings():
            # the interpreter does not know generated games; their scores come from TextWorld
            warnings.simplefilter("ignore", UnsupportedGameWarning)
            self._game, self._score = textworld.start(str(path), ASKED), 0
        self._game.seed(0)
        state = self._game.reset()
        _, _, after = state.feedback.partition(state.objective)
        return f"{state.objective}\n{_clean(after)}", self._info(state)

    def act(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; the game has no horizon of its own: nothing is ever truncated."""
        state, score, done = self._game.step(action)
        reward, self._score = (score - self._score) / state.max_score, score
        return _clean(state.feedback), reward, done, False, self._info(state)

    def fork(self) -> TextWorldEnv:
        """Return a second environment in the same state, in the cheaper way."""
        if self.fork_kind == "replay":
            # the mixin's child is what `fresh` returns
            return super().fork()  # type: ignore[return-value]
        child = self.fresh()
        child._record, child._score = self._record, self._score
        child._game = self._game.copy()
        return child

    def fresh(self) -> TextWorldEnv:
        """Return another environment of the same games."""
        return TextWorldEnv(self._find)

    def close(self) -> None:
        """Let go of the game."""
        if self._game is not None:
            self._game.close()
        self._game = None

    def solution(self) -> list[str]:
        """Return the commands that the game was generated with, from its start to its end."""
        told = Game.load(str(self._find(self.snapshot().task).with_suffix(".json")))
        return list(told.walkthrough)

    def _info(self, state: Any) -> dict[str, Any]:
        return {"admissible": list(state.admissible_commands), "won": bool(state.won)}


def _clean(text: str) -> str:
    """Return `text` without the prompt and the status line behind it, and without empty lines."""
    said = re.sub(r"\n>[^\n]*$", "", text.rstrip())
    return "\n".join(line.strip() for line in said.splitlines() if line.strip()) or "Nothing."
