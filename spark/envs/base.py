"""The environment protocol: a Gymnasium-shaped text environment that can fork."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

ForkKind = Literal["state", "copy", "replay"]
Determinism = Literal["exact", "reward_only"]


@runtime_checkable
class Env(Protocol):
    """One text environment with one current state.

    `info["won"]` says whether the task is solved; `info["admissible"]` lists the commands that the
    current state accepts. It is None where any text is accepted, and `info["examples"]` then has
    commands worth trying.
    """

    @property
    def fork_kind(self) -> ForkKind:
        """How a fork is made: a state id, a copy of the process or object, or replayed actions."""
        ...

    @property
    def determinism(self) -> Determinism:
        """What a restored state repeats: everything, or only rewards and the end of the episode.

        Asked once the environment was reset. What an environment that repeats no more than rewards
        said in other words at its last restore stands in `differences`, if it has that attribute.
        """
        ...

    def reset(self, task: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
        """Start `task` and return (observation, info). Raises ValueError for an unknown task."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act and return (observation, reward, terminated, truncated, info)."""
        ...

    def snapshot(self) -> Any:
        """Return a handle on the current state, valid for `restore` on this environment."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to the state of `snapshot`. Raises `RestoreError` when it cannot be repeated."""
        ...

    def fork(self) -> Env:
        """Return a second, independent environment in the same state."""
        ...

    def close(self) -> None:
        """Free what the environment holds; calling it twice is allowed."""
        ...


class EnvSource(Protocol):
    """Where tasks come from and environments are made.

    A source that cannot run any number of environments at once has an attribute `capacity`, int.
    """

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return `count` task names of `split` ("L0", "L1", "L2", "train"), the same for a seed."""
        ...

    def make(self) -> Env:
        """Return a fresh environment, not yet reset."""
        ...


class RestoreError(RuntimeError):
    """A restored state differs from the recorded one; the message names the first such step."""


class EnvError(RuntimeError):
    """An environment failed or broke the protocol; names the environment, the task and the step."""


class EnvTimeout(EnvError):
    """An environment took longer than its time limit; only its own trajectory is lost."""
