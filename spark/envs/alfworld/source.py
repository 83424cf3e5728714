"""Where ALFWorld tasks come from: generated scenes, or a folder of official games."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeVar

try:
    from spark.envs.alfworld.engine import Game
except ImportError as error:
    raise ImportError(
        f"ALFWorld is not installed ({error}); run: pip install spark-branching[alfworld]"
    ) from error

from spark.envs.alfworld.env import AlfworldEnv
from spark.envs.alfworld.experts import handcoded, planned
from spark.envs.alfworld.generate import sample_game
from spark.envs.alfworld.official import OfficialGames
from spark.envs.alfworld.problem import GameData
from spark.envs.alfworld.scenes import Scenes, TaskName
from spark.envs.alfworld.translate import cached_at, translate
from spark.envs.expert import Episode
from spark.envs.splits import check_split

GAMES_KEPT = 64
FEW_TASKS = 16
"""Below this, starting processes takes longer than the work."""
T = TypeVar("T")


class AlfworldSource:
    """Tasks of ALFWorld's engine and the environments that play them.

    Splits: "train" and "L0" share task types and floor plans but no instance; "L1" uses floor
    plans held out from both; "L2" uses held-out task types. Scores on generated scenes are not
    comparable with scores on the official games.

    Example:
        source = AlfworldSource(scenes=Scenes(rooms=("Bedroom",)))
        task = source.tasks("L0", 1)[0]
        env = source.make()
        text, info = env.reset(task)
        episode = source.expert(task)
    """

    def __init__(
        self,
        *,
        scenes: Scenes | None = None,
        data: str | Path | None = None,
        idle_commands: bool = True,
    ) -> None:
        """`scenes` says what is generated; `data` is a folder of official games to use instead
        (the json_2.1.1 that `alfworld-download` makes); `idle_commands` as in `AlfworldEnv`.
        """
        if data is not None and scenes is not None:
            raise ValueError("scenes and data exclude each other; give one of them")
        self.scenes = scenes or Scenes()
        self.official = OfficialGames(Path(data)) if data is not None else None
        self.idle_commands = idle_commands
        self._games: OrderedDict[str, Game] = OrderedDict()

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return the names of `count` tasks of `split`, the same ones for the same seed."""
        check_split(split)
        if self.official is not None:
            return self.official.tasks(split, count, seed)
        digest = self.scenes.digest()
        return [str(TaskName(split, seed, index, digest)) for index in range(count)]

    def make(self) -> AlfworldEnv:
        """Return a fresh environment; those of one source share their loaded games."""
        return AlfworldEnv(self.game, idle_commands=self.idle_commands)

    def expert(
        self,
        task: str,
        *,
        kind: Literal["handcoded", "planner"] = "handcoded",
        max_steps: int = 50,
        seed: int = 0,
        detours: float = 0.0,
    ) -> Episode:
        """Return an expert's episode; "handcoded" explores, "planner" knows the whole state.

        `detours` is the probability that a step of the handcoded expert is one at random.
        """
        if kind == "planner":
            return planned(self.game(task), max_steps=max_steps)
        return handcoded(self.game(task), max_steps=max_steps, seed=seed, detours=detours)

    def experts(
        self,
        tasks: Sequence[str],
        *,
        workers: int = 2,
        max_steps: int = 50,
        seed: int = 0,
        detours: float = 0.0,
    ) -> Iterator[Episode]:
        """Yield the handcoded expert's episodes on `tasks`, in order, made in `workers` processes.

        A script that calls this needs the usual `if __name__ == "__main__":`.
        """
        play = partial(self.expert, max_steps=max_steps, seed=seed, detours=detours)
        yield from self._map(play, tasks, workers)

    def texts(self, seed: int) -> Iterator[str]:
        """Yield the first texts of tasks whose types are held out."""
        for task in self.tasks("L2", 64, seed):
            yield self.make().reset(task)[0]

    def prepare(self, tasks: Sequence[str], *, workers: int = 2) -> None:
        """Fill the cache on disk for `tasks` in `workers` processes, so that they load at once.

        A script that calls this needs the usual `if __name__ == "__main__":`.
        """
        missing = [task for task in dict.fromkeys(tasks) if not self._is_cached(task)]
        for _ in self._map(self._translate, missing, workers):
            pass

    def game(self, task: str) -> Game:
        """Return the loaded game of `task`. Raises ValueError when the name is not one of ours."""
        if task not in self._games:
            self._games[task] = Game(self._read(task))
            while len(self._games) > GAMES_KEPT:
                self._games.popitem(last=False)
        self._games.move_to_end(task)
        return self._games[task]

    def _map(self, call: Callable[[str], T], tasks: Sequence[str], workers: int) -> Iterator[T]:
        """Yield `call` of each task, in processes where that pays."""
        if workers <= 1 or len(tasks) < FEW_TASKS:
            yield from map(call, tasks)
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(call, tasks, chunksize=4)

    def _is_cached(self, task: str) -> bool:
        data = self._read(task)
        return cached_at(data.domain, data.problem).exists()

    def _translate(self, task: str) -> None:
        data = self._read(task)
        translate(data.domain, data.problem)

    def _read(self, task: str) -> GameData:
        if self.official is not None:
            return self.official.read(task)
        name = TaskName.parse(task)
        if name.digest != self.scenes.digest():
            raise ValueError(
                f"task {task!r} was made with other scene options than this source's "
                f"(@{self.scenes.digest()}); build the source with the same Scenes"
            )
        return sample_game(self.scenes, name)

    def __getstate__(self) -> dict[str, object]:
        # loaded games stay behind: another process loads its own
        return {**self.__dict__, "_games": OrderedDict()}
