"""Becoming another engine's own server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec


def become(engine: str, module: str, arguments: Sequence[str]) -> None:
    """Replace this process by `python -m module arguments`.

    Raises ValueError when `engine` is not installed.
    """
    need(engine)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def need(engine: str) -> None:
    """Raise ValueError when `engine` is not installed."""
    if find_spec(engine) is None:
        raise ValueError(
            f"engine={engine!r} is not installed: pip install 'spark-branching[{engine}]'"
        )
