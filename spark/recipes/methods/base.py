"""What methods share: a recipe without any method, and the change that makes one of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spark.recipes.config import Recipe
from spark.train.credit import CreditConfig
from spark.train.replay import ReplayConfig


def method(
    recipe: Recipe,
    *,
    credit: dict[str, Any] | None = None,
    replay: ReplayConfig | None = None,
    **rollout: Any,
) -> Recipe:
    """Return `recipe` with everything that makes a method reset, and then set as given.

    Rewards, the way of normalising, the loss, the model, the games and the horizon stay those of
    the recipe. Keyword arguments are fields of `RolloutConfig`.
    """
    neutral = {"branch_at": "next", "planner": "none", "pacing": "first_come"}
    ours, plain = recipe.train.credit, CreditConfig()
    reset = replace(
        ours,
        scheme=plain.scheme,
        leaf_weights=plain.leaf_weights,
        novelty_bonus=plain.novelty_bonus,
        once_per_leaf=plain.once_per_leaf,
    )
    train = replace(
        recipe.train, credit=replace(reset, **(credit or {})), replay=replay or ReplayConfig()
    )
    changed = replace(recipe.rollout, pace_turns=None, root_cap=None, **{**neutral, **rollout})
    return replace(recipe, rollout=changed, train=train)
