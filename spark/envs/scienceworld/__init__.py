"""ScienceWorld: science experiments in a simulated house, with the official variations."""

from spark.envs.scienceworld.options import ScienceWorldOptions

__all__ = ["ScienceWorldOptions"]
