"""Reads what a run left on disk, finished or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark.core import Tree

Decode = Callable[[Sequence[int]], str]


@dataclass(kw_only=True, slots=True)
class Run:
    """A run directory in memory; what is missing on disk is empty here."""

    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    decode: Decode = lambda tokens: " ".join(map(str, tokens))
    """Token ids -> text, with the run's own tokenizer; the ids themselves without one."""
    notices: list[str] = field(default_factory=list)
    """What a reader should know about missing files."""

    @property
    def name(self) -> str:
        """Name of the directory, or of the trees file."""
        return self.path.resolve().name


def load_run(path: Path) -> Run:
    """Load a run directory, or one file of trees.

    Raises ValueError where `path` is not a run, or a file in it is not what its name says.
    """
    from spark.rollout.store import load_trees

    run = Run(path=path)
    if path.is_file():
        run.trees = list(load_trees(path))
        return with_tokenizer(run, path.parent)
    files = {name: path / name for name in ("summary.json", "metrics.jsonl", "trees.jsonl")}
    present = {name: file for name, file in files.items() if file.exists()}
    if not present:
        raise ValueError(f"{path} is not a run: it holds none of {', '.join(files)}")
    if "summary.json" in present:
        run.summary = parse_object(present["summary.json"].read_text(), present["summary.json"])
    elif "metrics.jsonl" in present:
        run.notices.append("This run is not finished: there is no summary.json yet.")
    if (path / "recipe.json").exists():
        run.recipe = parse_object((path / "recipe.json").read_text(), path / "recipe.json")
    if "metrics.jsonl" in present:
        lines = present["metrics.jsonl"].read_text().splitlines()
        run.metrics = [parse_object(line, present["metrics.jsonl"]) for line in lines if line]
    if "trees.jsonl" in present:
        run.trees = list(load_trees(present["trees.jsonl"]))
    return with_tokenizer(run, path)


def parse_object(text: str, source: Path) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises ValueError naming `source`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source} holds a {type(value).__name__} where an object is expected")
    return value


def with_tokenizer(run: Run, folder: Path) -> Run:
    """Give `run` the first tokenizer stored below `folder`."""
    found = sorted(folder.rglob("tokenizer.json"), key=lambda file: len(file.parts))
    if not found:
        run.notices.append("No tokenizer is stored with the run: tokens are shown as ids.")
        return run
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(found[0]))
    except Exception as error:  # the library raises plain Exception for a file it cannot read
        raise ValueError(f"{found[0]} is not a tokenizer: {error}") from None
    run.decode = lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=False)
    return run
