"""Environments that fork. `ENVS["alfworld"]` is the class of a source of tasks."""

from typing import Any

from spark.envs.base import EnvSource
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


def load_source(name: str, *given: Any, **named: Any) -> EnvSource:
    """Return the source of tasks that `name` makes of what it is given.

    Raises ValueError where it is unknown, or makes something else.
    """
    made: EnvSource = ENVS.make(name, *given, **named)
    for method in ("tasks", "make"):
        if not callable(getattr(made, method, None)):
            raise ValueError(
                f"environment {name!r}: {type(made).__name__} has no {method}(), so that it is no "
                "source of tasks; name the class that makes the environments"
            )
    return made
