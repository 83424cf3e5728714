"""Gymnasium environments by split."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from spark.envs.base import ForkKind
from spark.envs.gymnasium.options import GymnasiumOptions, TaskName
from spark.envs.splits import check_split
from spark.registry import load
from spark.seeds import derive_seed

try:
    import gymnasium

    from spark.envs.gymnasium.env import GymnasiumEnv
except ImportError as error:
    raise ImportError(
        f"Gymnasium is not installed ({error}); run: pip install spark-branching[gymnasium]"
    ) from error

IDS = {"train": "seen", "L0": "seen", "L1": "unseen", "L2": "other"}
"""Split -> the option that has its ids."""


class GymnasiumSource:
    """Tasks of any registered Gymnasium environments: an id and a seed each.

    Example:
        source = GymnasiumSource(GymnasiumOptions(seen=("MiniGrid-Empty-8x8-v0",)))
        text, info = source.make().reset(source.tasks("train", 1)[0])
    """

    def __init__(self, options: GymnasiumOptions | None = None) -> None:
        """Raises ValueError for ids that are not registered."""
        self.options = options or GymnasiumOptions()
        self._prepare()
        for field in ("seen", "unseen", "other"):
            for name in getattr(self.options, field):
                self._check(name, field)

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return `count` tasks of `split`, its ids in turn, the same ones for the same seed."""
        check_split(split)
        ids = getattr(self.options, IDS[split])
        return [
            str(TaskName(ids[index % len(ids)], derive_seed("gym", split, seed, index) % 2**31))
            for index in range(count)
        ]

    def make(self) -> GymnasiumEnv:
        """Return a fresh environment, not yet reset."""
        return GymnasiumEnv(self.read, self._words, self._kinds)

    def read(self, task: str) -> TaskName:
        """Return the parts of a task's name. Raises ValueError when there is no such task."""
        name = TaskName.parse(task)
        self._check(name.id, "task")
        return name

    def _check(self, name: str, field: str) -> None:
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            raise ValueError(
                f"{field}: {name!r} is not registered ({error}); name its `module`"
            ) from error

    def _prepare(self) -> None:
        if self.options.module:
            import_module(self.options.module)
        self._words = load(self.options.words)()
        self._kinds: dict[str, ForkKind] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # another process registers the ids and proves the copies itself
        self.options = state["options"]
        self._prepare()
