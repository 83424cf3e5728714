"""Environments that fork. `ENVS["alfworld"]` is the class of a source of tasks."""

from spark.registry import Registry

ENVS = Registry(
    "environment",
    {
        "alfworld": "spark.envs.alfworld.source:AlfworldSource",
        "gymnasium": "spark.envs.gymnasium.source:GymnasiumSource",
        "scienceworld": "spark.envs.scienceworld.source:ScienceWorldSource",
        "textworld": "spark.envs.textworld.source:TextWorldSource",
        "webshop": "spark.envs.webshop.source:WebShopSource",
    },
)
