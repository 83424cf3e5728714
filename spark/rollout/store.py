"""Trees on disk as JSON Lines: one tree a line, described in docs/trees.md."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spark.core import Node, Tree

SCHEMA = 1


class StoreError(OSError):
    """Trees could not be written; what was written before is intact."""


def save_tree(path: Path | str, tree: Tree) -> None:
    """Append `tree` to `path`, whole or not at all. Raises StoreError, e.g. when the disk is full,
    and ValueError for what `load_trees` would refuse: scores missing, numbers that are not finite.

    An incomplete last line, left by a process that was killed, is cut off first.
    """
    for index, node in enumerate(tree.nodes):
        _check_lengths(index, node)
    try:
        append_line(path, {"schema": SCHEMA, **asdict(tree)})
    except OSError as error:
        raise StoreError(
            error.errno, f"could not write a tree ({error.strerror}); earlier trees are safe", path
        ) from error


def append_line(path: Path | str, record: dict[str, Any]) -> None:
    """Append `record` to the JSON Lines of `path` as `save_tree` does.

    Raises OSError, and ValueError where a number is not finite: JSON has none such.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    # "a+b" reads anywhere and writes at the end
    with Path(path).open("a+b", buffering=0) as file:
        end = _end_of_last_line(file)
        if file.seekable() and end < file.seek(0, os.SEEK_END):
            file.truncate(end)
        _write_whole(file, line, end)


def load_trees(path: Path | str) -> list[Tree]:
    """Return the trees of `path`. Raises ValueError naming the line it cannot read, and why."""
    trees = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                trees.append(_tree(line.decode()))
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return trees


def _end_of_last_line(file: Any) -> int:
    """Return the offset after the last newline, reading backwards."""
    end: int = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_whole(file: Any, line: bytes, start: int) -> None:
    """Write `line`; on failure cut the file back to `start` and raise."""
    written = 0
    try:
        while written < len(line):
            written += file.write(line[written:])
    except OSError:
        if written:
            file.truncate(start)
        raise


def _tree(line: str) -> Tree:
    if not line.endswith("\n"):
        raise ValueError("the line is cut off; the process that wrote it may have been killed")
    try:
        record = json.loads(line, parse_constant=_not_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(record, dict) or "schema" not in record:
        raise ValueError("not a Spark tree (no schema)")
    if record.pop("schema") != SCHEMA:
        raise ValueError(f"written with another schema; this version reads schema {SCHEMA}")
    _check_names(Tree, record)
    nodes = [_node(index, node) for index, node in enumerate(record.pop("nodes"))]
    return Tree(nodes=nodes, **record)


def _not_finite(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON; an environment may have given such a reward")


def _node(index: int, record: dict[str, Any]) -> Node:
    _check_names(Node, record)
    allowed = {int(offset): ids for offset, ids in record.pop("allowed").items()}
    node = Node(allowed=allowed, **record)
    _check_lengths(index, node)
    if (node.parent is None) != (index == 0):
        raise ValueError(f"node {index}: its parent is {node.parent}; the prompt alone has none")
    if node.parent is not None and not 0 <= node.parent < index:
        raise ValueError(f"node {index}: its parent {node.parent} does not precede it")
    return node


def _check_lengths(index: int, node: Node) -> None:
    for name in ("sampled", "logprobs", "entropies", "log_kept_mass"):
        count = len(getattr(node, name))
        if count != len(node.tokens):
            raise ValueError(
                f"node {index}: {name} has {count} entries for {len(node.tokens)} tokens; give one "
                "a token, 0.0 for a score that is not known"
            )


def _check_names(cls: type, record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"not a {cls.__name__.lower()}: {record!r:.40}")
    expected = {field.name for field in fields(cls)}
    if record.keys() != expected:
        odd = ", ".join(sorted(record.keys() ^ expected))
        raise ValueError(f"missing or unknown field of a {cls.__name__.lower()}: {odd}")
