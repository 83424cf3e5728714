"""A run for torchrun: `launched.py FOLDER [--stop-at STEP] [--servers URLS]`; goes on if begun."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from spark.recipes import RECIPES
from spark.recipes.config import Recipe
from spark.recipes.events import Progress
from spark.recipes.run import train


def recipe(servers: str | None = None) -> Recipe:
    """One arm of a few steps, in full precision, so that only the order of sums differs."""
    small = RECIPES["first_light_smoke"]()
    return replace(
        small,
        arms=("spark",),
        budget_tokens=6_500,
        engine="http" if servers else "local",
        url=servers,
        rollout=replace(small.rollout, leaves=6, roots=3),
        eval=replace(small.eval, games={"L0": 2}),
        # rows so short that a share is several of them
        train=replace(
            small.train, games_per_step=4, checkpoint_every=1, bf16=False, row_tokens=1024
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--servers")
    args = parser.parse_args()

    def watch(progress: Progress) -> None:
        if (progress.phase, progress.step) == ("rollout", args.stop_at):
            # as hard as a crash: the others wait and are ended by the launcher
            os._exit(9)

    begun = (args.folder / "state.json").exists()
    train(recipe(args.servers), args.folder, resume=begun, on_progress=watch)


if __name__ == "__main__":
    main()
