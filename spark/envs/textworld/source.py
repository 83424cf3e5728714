"""TextWorld's games by split, and the environments that play them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from spark.envs.expert import Episode, ExpertStep
from spark.envs.textworld.options import SPLITS, TaskName, TextWorldOptions

try:
    from spark.envs.textworld.env import TextWorldEnv
    from spark.envs.textworld.games import game_file, path_of
except ImportError as error:
    raise ImportError(
        f"TextWorld is not installed ({error}); run: pip install spark-branching[textworld]"
    ) from error


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
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose among {', '.join(SPLITS)}")
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

    def expert(self, task: str) -> Episode:
        """Return the game's own shortest way, played; it knows where everything is."""
        env = self.make()
        text, info = env.reset(task)
        episode = Episode(ending=text)
        for action in env.solution():
            step = ExpertStep(text, action, False, "", info["admissible"])
            episode.steps.append(step)
            text, _, _, _, info = env.step(action)
        episode.won, episode.ending = info["won"], text
        env.close()
        return episode


def _find(task: str) -> Path:
    return game_file(TaskName.parse(task))
