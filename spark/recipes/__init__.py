"""Recipes: whole experiments as data. `RECIPES["first_light"]()` returns one."""

from spark.registry import Registry

RECIPES = Registry(
    "recipe",
    {
        "first_light": "spark.recipes.first_light:first_light",
        "first_light_smoke": "spark.recipes.first_light:first_light_smoke",
    },
)
