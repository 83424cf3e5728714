"""Checkpoints of an arm: transformers' own folder, completed by our state and a hash of it all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from spark.recipes.journal import read_json, write_json

STATE = "spark_arm.json"


def complete_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` and the hash of every file: a checkpoint without them does not count."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    write_json(folder / STATE, {**state, "files": files})


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`, None when there is none."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def verified_state(checkpoint: Path) -> dict[str, Any]:
    """Return the arm's state in `checkpoint`. Raises ValueError when a file is not as written."""
    state = read_json(checkpoint / STATE)
    for name, expected in state["files"].items():
        path = checkpoint / name
        if not path.exists() or file_hash(path) != expected:
            raise ValueError(
                f"checkpoint {checkpoint} is damaged ({name} is not as it was written); remove "
                "that folder to resume from the checkpoint before it"
            )
    return state


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
