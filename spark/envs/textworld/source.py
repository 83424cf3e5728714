"""TextWorld's games by split, and the environments that play them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random

from spark.envs.expert import Episode, ExpertStep
from spark.envs.splits import check_split
from spark.envs.textworld.options import TaskName, TextWorldOptions
from spark.seeds import derive_seed

try:
    from spark.envs.textworld.env import TextWorldEnv
    from spark.envs.textworld.games import game_file, path_of
except ImportError as error:
    raise ImportError(
        f"TextWorld is not installed ({error}); run: pip install spark-branching[textworld]"
    ) from error

HARMLESS = ("look", "inventory", "examine ")
"""What a detour may do."""


class TextWorldSource:
    """Games that TextWorld generates, each when it is first played; they are kept on disk.

    Example:
        source = TextWorldSource(TextWorldOptions(level=2))
        source.prepare(source.tasks("train", 100))
    """

    def __init__(self, options: TextWorldOptions | None = None) -> None:
        self.options = options or TextWorldOptions()

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return the names of `count` games of `split`, the same ones for the same seed."""
        check_split(split)
        options = self.options
        challenge = options.other_challenge if split == "L2" else options.challenge
        level = options.harder_level if split == "L1" else options.level
        kind = (challenge, level, options.directions)
        return [str(TaskName(split, seed, number, *kind)) for number in range(count)]

    def make(self) -> TextWorldEnv:
        """Return a fresh environment, not yet reset."""
        return TextWorldEnv(_find)

    def prepare(self, tasks: Sequence[str], *, workers: int = 2) -> None:
        """Generate the games of `tasks` that are missing, in `workers` processes.

        A script that calls this needs the usual `if __name__ == "__main__":`.
        """
        names = map(TaskName.parse, dict.fromkeys(tasks))
        missing = [str(name) for name in names if not path_of(name).exists()]
        if missing:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(_find, missing))

    def expert(
        self, task: str, *, max_steps: int = 100, seed: int = 0, detours: float = 0.0
    ) -> Episode:
        """Return the game's own shortest way, played; it knows where everything is.

        `detours`: probability of a harmless command at random before a step.
        """
        env, rng = self.make(), Random(derive_seed(seed, task))
        text, info = env.reset(task)
        episode, way = Episode(ending=text), env.solution()
        while way and len(episode.steps) < max_steps and not info["won"]:
            harmless = [c for c in info["admissible"] if c.startswith(HARMLESS)]
            action = rng.choice(harmless) if rng.random() < detours else way.pop(0)
            episode.steps.append(ExpertStep(text, action, False, "", info["admissible"]))
            text, _, _, _, info = env.step(action)
        episode.won, episode.ending = info["won"], text
        env.close()
        return episode

    def experts(
        self, tasks: Sequence[str], *, max_steps: int, seed: int, detours: float
    ) -> Iterator[Episode]:
        """Yield the shortest ways of `tasks`, played, in order."""
        for task in tasks:
            yield self.expert(task, max_steps=max_steps, seed=seed, detours=detours)

    def texts(self, seed: int) -> Iterator[str]:
        """Yield texts and commands on the ways of some tasks of every evaluation split."""
        for task in (task for split in ("L0", "L1", "L2") for task in self.tasks(split, 24, seed)):
            for step in self.expert(task).steps:
                yield f"{step.observation} {' '.join(step.admissible)}"


def _find(task: str) -> Path:
    return game_file(TaskName.parse(task))
