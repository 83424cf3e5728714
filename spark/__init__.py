"""Branching rollouts and tree training for LLM agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark.engines.http import HTTPEngine
    from spark.engines.local import LocalEngine

__all__ = ["HTTPEngine", "LocalEngine", "__version__"]
ENGINE_NAMES = {"HTTPEngine": "http", "LocalEngine": "local"}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import an engine when it is first asked for, so that `import spark` stays light."""
    if name in ENGINE_NAMES:
        from spark.engines import ENGINES

        return ENGINES[ENGINE_NAMES[name]]
    raise AttributeError(f"module 'spark' has no attribute {name!r}")
