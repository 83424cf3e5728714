"""TextWorld: generated text adventures whose difficulty can be chosen."""

from spark.envs.textworld.options import TextWorldOptions

__all__ = ["TextWorldOptions"]
