"""Recipes: whole experiments as data. `RECIPES["first_light"]()` returns one.

Every method of METHODS turns a recipe into that of its own: `METHODS["arpo"](recipe)`; each is a
recipe, too: the main job's setting under that method alone.
"""

from spark.registry import Registry

BRANCHING = (
    "spark",
    "spark_paced",
    "spark_here",
    "entropy_exact",
    "random",
    "fixed",
    "novelty",
    "explorer",
    "return_to_success",
)
SIBLINGS = ("chain", "arpo", "tree_grpo", "treepo", "at2po", "gigpo", "spear")
METHODS = Registry(
    "method",
    {name: f"spark.recipes.methods.branching:{name}" for name in BRANCHING}
    | {name: f"spark.recipes.methods.siblings:{name}" for name in SIBLINGS},
)

RECIPES = Registry(
    "recipe",
    {
        "first_light": "spark.recipes.first_light:first_light",
        "first_light_smoke": "spark.recipes.first_light:first_light_smoke",
        "scienceworld": "spark.recipes.scienceworld:scienceworld",
        "scienceworld_smoke": "spark.recipes.scienceworld:scienceworld_smoke",
        **{name: f"spark.recipes.methods.alone:{name}" for name in METHODS},
    },
)
