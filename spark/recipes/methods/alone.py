"""Every method as a recipe of its own: the main job's setting under that method alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from spark.recipes import METHODS
from spark.recipes.config import Recipe
from spark.recipes.first_light import first_light


def __getattr__(name: str) -> Callable[[], Recipe]:
    """Return the recipe of the method `name`."""
    if name not in METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(under_method, name)


def under_method(name: str) -> Recipe:
    """Return the main job with the method `name` as its only arm."""
    recipe: Recipe = METHODS[name](first_light())
    return replace(recipe, name=name, arms=(name,), own_arm=name)
