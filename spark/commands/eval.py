"""`spark eval RECIPE --policy PATH --split L0`: success on the recipe's fixed tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from spark.commands.arguments import named_recipe, parse, quiet_libraries
from spark.recipes.config import Recipe


@dataclass(kw_only=True, slots=True)
class EvalOptions:
    """Play the fixed evaluation games of one split and print the share that was solved."""

    policy: str | None = None
    """Folder or model name; None = the recipe's start."""
    split: str = "L0"
    """L0: like training, L1: further away, L2: furthest (docs/environments.md says how)."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    name, recipe, flags = named_recipe(argv, "spark eval")
    default = EvalOptions(recipe=recipe)
    options = parse(EvalOptions, flags, prog=f"spark eval {name}", default=default)
    quiet_libraries()
    from spark.recipes.policy import load_policy
    from spark.recipes.session import Session

    recipe = with_policy(options.recipe, options.policy)
    with Session(recipe, *load_policy(recipe.model)) as session:
        wins = session.evaluate_games(options.split)
        different = len(set(session.eval_games(options.split)))
    share = sum(wins) / len(wins)
    error = math.sqrt(share * (1 - share) / len(wins))
    games = f"{len(wins)} games" if different == len(wins) else f"{len(wins)} plays of {different}"
    print(f"{options.split}: {share:.1%} of {games}, standard error {error:.1%}")


def with_policy(recipe: Recipe, policy: str | None) -> Recipe:
    """Return `recipe` starting from `policy`, where one is given."""
    if policy is None:
        return recipe
    return replace(recipe, model=replace(recipe.model, path=policy))
