"""The outline of a tree in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from sample_run import make_tree, write_run

from spark.core import Tree
from spark.view.run import load_run
from spark.view.terminal import draw, show_run


def test_outline_has_every_node_and_leaf(tmp_path: Path) -> None:
    tree = make_tree(1, arm="spark", step=4)
    console = Console(file=io.StringIO(), width=200)
    console.print(draw(tree, lambda ids: " ".join(map(str, ids))))
    text = console.file.getvalue()
    numbers = [line.strip("│├└─ ").split(" ")[0] for line in text.splitlines()]
    assert {str(index) for index in range(len(tree.nodes))} <= set(numbers)
    assert text.count("reward") - text.count("with reward") == len(tree.leaves())
    assert text.count("branches on explore") == sum(n.trigger is not None for n in tree.nodes)


def test_a_tree_without_nodes_says_why() -> None:
    lost = Tree(task="L0/7", seed=0, info={"errors": [{"error": "reset failed"}]})
    console = Console(file=io.StringIO(), width=200)
    console.print(draw(lost, lambda ids: ""))
    assert "L0/7" in console.file.getvalue()
    assert "0 nodes" in console.file.getvalue() and "reset failed" in console.file.getvalue()


def test_unknown_tree_is_named(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    with pytest.raises(ValueError, match="tree=6: the run has 6 trees"):
        show_run(run, 6, Console(file=io.StringIO()))
