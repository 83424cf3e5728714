"""Any Gymnasium environment as a text environment; MiniGrid comes with its words."""

from spark.envs.gymnasium.options import GymnasiumOptions

__all__ = ["GymnasiumOptions"]
