"""The embedded engine: a transformers model with paged KV in this process."""

from spark.engines.local.engine import LocalEngine

__all__ = ["LocalEngine"]
