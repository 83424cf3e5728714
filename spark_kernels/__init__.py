"""The operators of Spark: one folder per op, each with its reference, its spec and its kernels."""

from spark_kernels._C import BlockPool, OutOfBlocks, Plan
from spark_kernels._load import active
from spark_kernels.head_loss import HeadLoss, PolicyLoss, head_loss
from spark_kernels.kv_fork import kv_fork
from spark_kernels.score import Scores, score
from spark_kernels.tree_attention import tree_attention

__all__ = [
    "BlockPool",
    "HeadLoss",
    "OutOfBlocks",
    "Plan",
    "PolicyLoss",
    "Scores",
    "active",
    "head_loss",
    "kv_fork",
    "score",
    "tree_attention",
]
