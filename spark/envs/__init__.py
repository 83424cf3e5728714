"""Environments that fork. `ENVS["alfworld"]` is the class of a source of tasks."""

from spark.registry import Registry

ENVS = Registry("environment", {"alfworld": "spark.envs.alfworld.source:AlfworldSource"})
