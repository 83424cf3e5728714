"""What a run writes while it works: trees, metrics, state; and how it is taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spark.core import Tree
from spark.rollout.store import append_line, load_trees, save_tree


class Journal:
    """The files of one run directory.

    Every line names its arm and step, so that what was written after the last checkpoint can be
    dropped when the run is resumed.
    """

    def __init__(self, folder: Path) -> None:
        """Make `folder` where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.trees = folder / "trees.jsonl"
        self.metrics = folder / "metrics.jsonl"

    def add_tree(self, tree: Tree) -> None:
        """Append a tree; its `info` has "arm" and "step"."""
        save_tree(self.trees, tree)

    def add_metrics(self, **values: Any) -> None:
        """Append one line of numbers, whole or not at all."""
        append_line(self.metrics, values)

    def drop_after(self, arm: str, step: int) -> None:
        """Forget what `arm` did from `step` on (evaluations apart), and an incomplete last line."""

        def is_before(record: dict[str, Any]) -> bool:
            evaluated = record.get("phase") == "evaluate"
            return evaluated or record["arm"] != arm or record["step"] < step

        _keep(self.metrics, is_before)
        _keep(self.trees, lambda tree: is_before(tree["info"]))

    def trees_of(self, arm: str) -> list[Tree]:
        """Return the trees that `arm` has written, oldest first."""
        trees = load_trees(self.trees) if self.trees.exists() else []
        return [tree for tree in trees if tree.info["arm"] == arm]

    def read_state(self) -> dict[str, Any]:
        """Return what was finished before; {} for a new run. Raises ValueError when damaged."""
        return read_json(self.folder / "state.json")

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state as a whole."""
        write_json(self.folder / "state.json", state)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in `path`, {} when there is none. Raises ValueError when damaged."""
    if not path.exists():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove the run and start again") from error
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2, default=str) + "\n")
    draft.replace(path)


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` as `read_json` gives what `write_json` wrote of it."""
    told: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return told


def changed_names(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs, e.g. ["train.lr"]; a setting that is not there counts as None."""
    names = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{name}.{inner}" for inner in changed_names(old, new)]
        elif old != new:
            names.append(name)
    return names


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite the JSON Lines of `path` with those that are whole and `wanted`."""
    if not path.exists():
        return
    draft = path.with_suffix(".tmp")
    with path.open() as source, draft.open("w") as target:
        for line in source:
            record = _whole(line)
            if record is not None and wanted(record):
                target.write(line)
    draft.replace(path)


def _whole(line: str) -> dict[str, Any] | None:
    """Return the object of `line`; None where it was cut off."""
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if line.endswith("\n") else None
