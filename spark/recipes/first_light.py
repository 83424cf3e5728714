"""The main job: generated ALFWorld scenes in which finding the object is the difficulty."""

from __future__ import annotations

from dataclasses import replace

from spark.envs.alfworld.scenes import Scenes
from spark.recipes.config import ColdStartConfig, EnvConfig, EvalConfig, Recipe, TrainConfig
from spark.rollout.config import RolloutConfig
from spark.train.config import SftConfig

SCENES = Scenes(
    rooms=("Bedroom", "Bathroom"),
    task_types=("pick_and_place_simple", "look_at_obj_in_light"),
    held_out_types=("pick_two_obj_and_place",),
    max_receptacles=10,
    object_names=8,
    closed=0.7,
    hidden=0.9,
)


def first_light() -> Recipe:
    """Spark (paced) against chains at equal generated tokens, on two CPU cores."""
    return Recipe(
        name="first_light",
        env=EnvConfig(scenes=SCENES, train_games=128),
        rollout=RolloutConfig(leaves=8, roots=3, width=2, horizon=16, max_tokens=24),
        train=TrainConfig(games_per_step=8, minibatches=2, lr=3e-4),
        budget_tokens=120_000,
        eval=EvalConfig(games={"L0": 200, "L1": 100, "L2": 100}),
        cold_start=ColdStartConfig(fit=SftConfig(steps=1200)),
    )


def first_light_smoke() -> Recipe:
    """Return the same experiment in seconds: a handful of games, a few steps."""
    recipe = first_light()
    return replace(
        recipe,
        name="first_light_smoke",
        budget_tokens=12_000,
        env=replace(recipe.env, train_games=8),
        train=replace(recipe.train, games_per_step=4, checkpoint_every=1),
        eval=EvalConfig(games={"L0": 4, "L1": 2, "L2": 2}),
        cold_start=ColdStartConfig(episodes=8, fit=SftConfig(steps=4)),
    )
