"""Sampling and scoring in one read of the logits; the maths is in README.md."""

from spark_kernels.score.op import Scores, score

__all__ = ["Scores", "score"]
