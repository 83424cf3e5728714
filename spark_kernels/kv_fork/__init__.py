"""`kv_fork`: give forked children their own copy of a partly filled KV block, in all layers."""

from spark_kernels.kv_fork.op import kv_fork

__all__ = ["kv_fork"]
