"""One clear error, with its place, for whatever an environment does wrong."""

from __future__ import annotations

import math
from typing import Any

from spark.envs.base import Determinism, Env, EnvError, ForkKind, RestoreError

Info = dict[str, Any]


class Guard:
    """An environment whose mistakes become `EnvError`s that name environment, task and step.

    Passes everything else through; a `ValueError` from `reset` (an unknown task) and a
    `RestoreError` stay what they are.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._name = type(env).__name__
        self._task = ""
        self._step = 0

    @property
    def fork_kind(self) -> ForkKind:
        """What the environment says, which may depend on its state."""
        return self._env.fork_kind

    @property
    def determinism(self) -> Determinism:
        """What the environment says once it was reset."""
        return self._env.determinism

    def reset(self, task: str, seed: int = 0) -> tuple[str, Info]:
        """Start `task`."""
        self._task, self._step = task, 0
        try:
            result = self._env.reset(task, seed)
        except (ValueError, RestoreError):
            raise
        except Exception as error:
            raise self._error(f"reset raised {type(error).__name__}: {error}") from error
        return self._checked(result, (str, dict))

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Act."""
        self._step += 1
        try:
            result = self._env.step(action)
        except Exception as error:
            what = f"{action!r} raised {type(error).__name__}: {error}"
            raise self._error(what) from error
        checked = self._checked(result, (str, float | int, bool, bool, dict))
        if not math.isfinite(checked[1]):
            raise self._error(
                f"returned {checked[1]!r} as its reward (a finite number was expected)"
            )
        return checked

    def snapshot(self) -> tuple[Any, str, int]:
        """Return the environment's own snapshot and the place it belongs to."""
        return self._env.snapshot(), self._task, self._step

    def restore(self, snapshot: tuple[Any, str, int]) -> None:
        """Go back."""
        inner, self._task, self._step = snapshot
        self._env.restore(inner)

    def fork(self) -> Guard:
        """Return a guarded fork."""
        child = Guard(self._env.fork())
        child._task, child._step = self._task, self._step
        return child

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _checked(self, result: Any, kinds: tuple[Any, ...]) -> Any:
        """Return `result` when it is a tuple of `kinds`."""
        if not isinstance(result, tuple) or len(result) != len(kinds):
            raise self._error(f"returned {result!r} instead of {len(kinds)} values")
        for value, kind, what in zip(result, kinds, _PLACES[len(kinds)], strict=True):
            if not isinstance(value, kind):
                raise self._error(f"returned {type(value).__name__} {value!r} as its {what}")
        return result

    def _error(self, what: str) -> EnvError:
        return EnvError(f"{self._name}, task {self._task!r}, step {self._step}: {what}")


_PLACES = {
    2: ("observation (text was expected)", "info"),
    5: ("observation (text was expected)", "reward", "terminated", "truncated", "info"),
}
