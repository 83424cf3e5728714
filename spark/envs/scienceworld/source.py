"""ScienceWorld's tasks by split, and the environments that play them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spark.envs.cache import cache_dir, write_atomic
from spark.envs.expert import Episode
from spark.envs.scienceworld.options import ScienceWorldOptions, TaskName
from spark.envs.splits import check_split, drawn

try:
    from scienceworld.constants import BASEPATH

    from spark.envs.scienceworld.env import ScienceWorldEnv
    from spark.envs.scienceworld.experts import demonstrate
    from spark.envs.scienceworld.simulators import Simulators
except ImportError as error:
    raise ImportError(
        f"ScienceWorld is not installed ({error}); run: pip install spark-branching[scienceworld]"
    ) from error

OFFICIAL = {"train": "train", "L0": "dev", "L1": "test", "L2": "test"}
"""Split -> the official one whose variations it takes."""


class ScienceWorldSource:
    """Tasks of ScienceWorld; the simulators of a process share one Java virtual machine.

    Example:
        with ScienceWorldSource() as source:
            env = source.make()
            text, info = env.reset(source.tasks("L1", 1)[0])
    """

    def __init__(self, options: ScienceWorldOptions | None = None) -> None:
        """Java starts with the first task."""
        self.options = options or ScienceWorldOptions()
        self._simulators = self._lender()

    @property
    def capacity(self) -> int:
        """Environments that may live at once."""
        return self.options.simulators

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return `count` variations in an order fixed by the seed, repeated if there are too few.

        Raises ValueError for an unknown split or task type.
        """
        check_split(split)
        kinds = self.options.held_out if split == "L2" else self.options.tasks
        names = [
            str(TaskName(kind, variation, self.options.simplifications))
            for kind in kinds
            for variation in self._variations[self._known(kind)][OFFICIAL[split]]
        ]
        return drawn(names, split, count, seed)

    def kinds(self) -> list[str]:
        """Return all task types of ScienceWorld."""
        return sorted(self._variations)

    def make(self) -> ScienceWorldEnv:
        """Return a fresh environment; it gets a simulator at its first reset."""
        return ScienceWorldEnv(self._simulators, self.read)

    def expert(
        self, task: str, *, max_steps: int = 100, seed: int = 0, detours: float = 0.0
    ) -> Episode:
        """Return the official solution of `task`, played; it knows where everything is.

        `detours`: probability of a look at something at random before a step.
        """
        simulator = self._simulators.blank()
        try:
            simulator.load(self.read(task), gold=True)
            commands = simulator.gold()
        finally:
            self._simulators.give(simulator)
        env = self.make()
        try:
            return demonstrate(env, task, commands, max_steps=max_steps, detours=detours, seed=seed)
        finally:
            env.close()

    def experts(
        self, tasks: Sequence[str], *, max_steps: int, seed: int, detours: float
    ) -> Iterator[Episode]:
        """Yield the official solutions of `tasks`, played, in order."""
        for task in tasks:
            yield self.expert(task, max_steps=max_steps, seed=seed, detours=detours)

    def texts(self, seed: int) -> Iterator[str]:
        """Yield the kinds of objects there are, and the texts and commands of all places in some
        tasks of every evaluation split.
        """
        listed = (Path(BASEPATH) / "object_type_ids.tsv").read_text()
        yield " ".join(re.findall(r"[A-Z][a-z]+", listed))
        env = self.make()
        for task in (task for split in ("L0", "L1", "L2") for task in self.tasks(split, 8, seed)):
            text, info = env.reset(task)
            commands = list(info["admissible"])
            yield f"{text} {' '.join(commands)}"
            for move in [command for command in commands if command.startswith("teleport to ")]:
                env.step(move)
                text, *_, info = env.step("look around")
                yield f"{text} {' '.join(info['admissible'])}"
        env.close()

    def read(self, task: str) -> TaskName:
        """Return the parts of a task's name. Raises ValueError when it is not one of ours."""
        name = TaskName.parse(task)
        if name.simplifications != self.options.simplifications:
            raise ValueError(
                f"task {task!r} has other simplifications than this source's "
                f"({self.options.simplifications!r}); build the source with the same"
            )
        known = self._variations[self._known(name.kind)].values()
        if not any(name.variation in variations for variations in known):
            raise ValueError(f"task {task!r}: {name.kind} has no variation {name.variation}")
        return name

    def close(self) -> None:
        """End the virtual machine; calling it twice is allowed."""
        self._simulators.close()
        self._simulators = self._lender()

    def __enter__(self) -> ScienceWorldSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lender(self) -> Simulators:
        return Simulators(self.options.simulators, self.options.spares)

    def _known(self, kind: str) -> str:
        if kind not in self._variations:
            known = ", ".join(self.kinds())
            raise ValueError(f"unknown task type {kind!r}; choose among {known}")
        return kind

    @cached_property
    def _variations(self) -> dict[str, dict[str, list[int]]]:
        """Task type -> official split -> variations; kept on disk, as only the simulator knows."""
        path = cache_dir() / "scienceworld" / f"variations-{version('scienceworld')}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            # absent, or spoilt by something outside: ask again
            simulator = self._simulators.blank()
        try:
            used = self.options.simplifications
            found = {kind: simulator.variations(kind, used) for kind in simulator.kinds()}
        finally:
            self._simulators.give(simulator)
        write_atomic(path, json.dumps(found).encode())
        return found

    def __getstate__(self) -> dict[str, Any]:
        # simulators stay behind: another process starts its own
        return {key: value for key, value in self.__dict__.items() if key != "_simulators"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._simulators = self._lender()
