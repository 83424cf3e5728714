"""Branching rollouts and tree training for LLM agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark.engines.local import LocalEngine

__all__ = ["LocalEngine", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import an engine when it is first asked for, so that `import spark` stays light."""
    if name == "LocalEngine":
        from spark.engines import ENGINES

        return ENGINES["local"]
    raise AttributeError(f"module 'spark' has no attribute {name!r}")
