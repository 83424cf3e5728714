"""Where generated files live between runs; safe for several processes at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache directory: SPARK_CACHE, or `spark` in the user's cache directory."""
    if chosen := os.environ.get("SPARK_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spark"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `path` so that another process sees the whole file or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
