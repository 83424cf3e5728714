"""Task name -> compiled game on disk, generated once (seconds) and kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from textworld import GameOptions
from textworld.challenges import CHALLENGES
from textworld.generator import compile_game

from spark.envs.cache import cache_dir
from spark.envs.textworld.options import TaskName

FORMAT = "1"


def game_file(name: TaskName) -> Path:
    """Return the story file of a game; its description lies beside it as `.json`."""
    path = path_of(name)
    if not path.exists():
        _generate(name, path)
    return path


def path_of(name: TaskName) -> Path:
    """Return where the story file of a game lies once it was made."""
    return cache_dir() / "textworld" / FORMAT / f"{name}".replace("/", "-") / "game.z8"


def _generate(name: TaskName, path: Path) -> None:
    """Make the game in a folder of its own and move that into place whole."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        options = GameOptions()
        options.seeds = name.game_seed
        options.path = str(made / path.name)
        options.grammar.only_last_action = not name.directions
        _, make, _ = CHALLENGES[f"tw-{name.challenge}"]
        compile_game(make({"level": name.level}, options), options)
        try:
            made.rename(path.parent)
        except OSError:
            # another process was quicker; its game is the same
            if not path.exists():
                raise
