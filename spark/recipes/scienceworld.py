"""ScienceWorld's tasks of finding and of life spans: short episodes that need exploration."""

from __future__ import annotations

from dataclasses import replace

from spark.recipes.config import (
    ColdStartConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
)
from spark.rollout.config import RolloutConfig
from spark.train.config import SftConfig


def scienceworld() -> Recipe:
    """Spark (paced) against chains, from a committed cold start of a small model."""
    return Recipe(
        name="scienceworld",
        model=ModelConfig(path="scienceworld"),
        env=EnvConfig(name="scienceworld", train_games=256),
        rollout=RolloutConfig(leaves=8, roots=4, width=2, horizon=16, max_tokens=40),
        train=TrainConfig(games_per_step=8, minibatches=2, lr=3e-4, row_tokens=8192),
        budget_tokens=200_000,
        eval=EvalConfig(games={"L0": 200, "L1": 200, "L2": 200}),
        cold_start=ColdStartConfig(
            episodes=700,
            max_steps=20,
            detours=0.1,
            # the commands that are made up for refusal are ALFWorld's
            invalid_share=0.0,
            context=4096,
            fit=SftConfig(steps=1200, batch_tokens=4096),
        ),
    )


def scienceworld_smoke() -> Recipe:
    """Return the same experiment in small: a handful of games, a few steps."""
    recipe = scienceworld()
    return replace(
        recipe,
        name="scienceworld_smoke",
        model=ModelConfig(path="runs/scienceworld_smoke_start"),
        budget_tokens=2_000,
        env=replace(recipe.env, train_games=4),
        train=replace(recipe.train, games_per_step=2, checkpoint_every=1),
        eval=EvalConfig(games={"L0": 2, "L1": 2, "L2": 2}),
        cold_start=replace(
            recipe.cold_start, episodes=4, fit=SftConfig(steps=4, batch_tokens=4096)
        ),
    )
