"""ALFWorld's engine on generated scenes or on the official games, with forks that cost nothing."""

from spark.envs.alfworld.scenes import TASK_TYPES, Scenes

__all__ = ["TASK_TYPES", "Scenes"]
