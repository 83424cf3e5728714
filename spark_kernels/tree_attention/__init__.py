"""`tree_attention`: paged causal attention that reads what siblings share once."""

from spark_kernels.tree_attention.op import plan_tensor, tree_attention

__all__ = ["plan_tensor", "tree_attention"]
