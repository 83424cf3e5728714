"""`tree_attention`: paged causal attention that reads what siblings share once."""

from spark_kernels.tree_attention.device import DevicePlan
from spark_kernels.tree_attention.op import plan_tensor, tree_attention

__all__ = ["DevicePlan", "plan_tensor", "tree_attention"]
