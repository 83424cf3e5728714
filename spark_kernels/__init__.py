"""The operators of Spark: one folder per op, each with its reference, its spec and its kernels."""

from spark_kernels._load import active
from spark_kernels.score import Scores, score

__all__ = ["Scores", "active", "score"]
