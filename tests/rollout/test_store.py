"""Trees on disk: nothing is lost on the way, and what cannot be read is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark.core import Node, Tree
from spark.rollout import StoreError, load_trees, save_tree

TEXT = st.text(max_size=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def nodes(draw: st.DrawFn, index: int) -> Node:
    """Draw a node with any content that may stand at `index`."""
    size = draw(st.integers(0, 4))

    def values(element: st.SearchStrategy) -> list:
        return draw(st.lists(element, min_size=size, max_size=size))

    return Node(
        parent=draw(st.integers(0, index - 1)) if index else None,
        turn=draw(st.integers(-1, 40)),
        tokens=values(st.integers(0, 2**31)),
        sampled=values(st.booleans()),
        logprobs=values(FLOATS),
        log_kept_mass=values(FLOATS),
        entropies=values(FLOATS),
        allowed=draw(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 99)))),
        trigger=draw(st.none() | TEXT),
        reward=draw(FLOATS),
        invalid=draw(st.booleans()),
        done=draw(st.booleans()),
    )


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Draw a tree with any content."""
    return Tree(
        task=draw(TEXT),
        seed=draw(st.integers(0, 2**62)),
        nodes=[draw(nodes(index)) for index in range(draw(st.integers(0, 5)))],
        weight_version=draw(st.integers(0, 9)),
        info={"note": draw(TEXT), "seconds": draw(FLOATS)},
    )


TREE = Tree(task="t", seed=1, nodes=[Node(parent=None, turn=-1, allowed={2: [3]}), Node(parent=0)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(forest=st.lists(trees(), max_size=3))
def test_round_trip(forest: list[Tree], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("store") / "trees.jsonl"
    path.touch()
    for tree in forest:
        save_tree(path, tree)
    assert load_trees(path) == forest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file that holds one tree."""
    save_tree(tmp_path / "trees.jsonl", TREE)
    return tmp_path / "trees.jsonl"


def test_lines_name_their_schema(path: Path) -> None:
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["schema"] == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda line: line[:-30], "line 2: the line is cut off"),
        (lambda line: "hello\n", "line 2: not JSON"),
        (lambda line: "[1]\n", "line 2: not a Spark tree"),
        (lambda line: '{"text": "other"}\n', "line 2: not a Spark tree"),
        (lambda line: line.replace('"schema": 1', '"schema": 9'), "line 2: .*another schema"),
        (lambda line: line.replace('"weight_version": 0, ', ""), "line 2: .*tree: weight_version"),
        (lambda line: line.replace('"turn": -1, ', ""), "line 2: .*node: turn"),
        (lambda line: line.replace('"done"', '"ended"'), "line 2: .*node: done, ended"),
        (
            lambda line: line.replace('"tokens": []', '"tokens": [4]'),
            "line 2: node 0: sampled has 0",
        ),
        (lambda line: line.replace('"parent": 0', '"parent": 1'), "line 2: node 1: its parent 1"),
        (lambda line: line.replace('"parent": 0', '"parent": null'), "line 2: node 1: .*None"),
        (lambda line: line.replace('"parent": null', '"parent": 0'), "line 2: node 0: its parent"),
        (lambda line: line.replace('"parent": 0', '"parent": "0"'), "line 2: "),
        (lambda line: line.replace('"allowed": {}', '"allowed": []'), "line 2: "),
        (lambda line: line.replace('"tokens": []', '"tokens": null'), "line 2: "),
        (lambda line: json.dumps(json.loads(line) | {"nodes": 5}) + "\n", "line 2: "),
        (lambda line: line.replace('"reward": 0.0', '"reward": NaN'), "line 2: NaN is no number"),
    ],
)
def test_damaged_files_are_named(path: Path, damage: Callable[[str], str], reason: str) -> None:
    line = path.read_text()
    path.write_text(line + damage(line))
    with pytest.raises(ValueError, match=reason) as error:
        load_trees(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("reward", [float("nan"), float("-inf")])
def test_numbers_that_json_has_not_are_not_written(path: Path, reward: float) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tree(path, Tree(task="t", seed=1, nodes=[Node(parent=None, reward=reward)]))
    assert path.read_bytes() == before


def test_a_tree_without_scores_is_told_what_it_lacks(path: Path) -> None:
    before = path.read_bytes()
    bare = Node(parent=None, tokens=[4, 5], sampled=[True, True])
    with pytest.raises(
        ValueError, match=r"node 0: logprobs has 0 entries for 2 tokens; give .*0\.0"
    ):
        save_tree(path, Tree(task="t", seed=1, nodes=[bare]))
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_named(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"line 2: .*utf-8"):
        load_trees(path)


def test_an_incomplete_last_line_is_cut_off_by_the_next_tree(path: Path) -> None:
    line = path.read_text()
    path.write_text(line + "x" * 200_000)
    save_tree(path, TREE)
    assert path.read_text() == line * 2


def test_full_device_is_one_clear_error() -> None:
    with pytest.raises(StoreError, match=r"earlier trees are safe.*/dev/full") as error:
        save_tree("/dev/full", TREE)
    assert error.value.errno == errno.ENOSPC


WRITE_UNTIL_FULL = """
import resource, sys
from spark.core import Tree
from spark.rollout.store import StoreError, save_tree
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for number in range(100):
    try:
        save_tree(sys.argv[1], Tree(task="x" * 900, seed=number))
    except StoreError as error:
        sys.exit(f"{number} {error}")
"""


def test_a_write_that_stops_half_way_leaves_whole_lines(tmp_path: Path) -> None:
    """The kernel takes the first part of a line and refuses the rest."""
    path = tmp_path / "trees.jsonl"
    command = [sys.executable, "-c", WRITE_UNTIL_FULL, str(path)]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False)
    number = int(stopped.stderr.split()[0])
    assert number > 3
    assert [tree.seed for tree in load_trees(path)] == list(range(number))
    save_tree(path, TREE)
    assert len(load_trees(path)) == number + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_loses_nothing_and_can_be_resumed(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path, saved = tmp_path / "trees.jsonl", 0
        filler = tmp_path / "filler"
        filler.write_bytes(b"x" * 40_000)
        with pytest.raises(StoreError, match="No space left"):
            for saved in range(1000):
                save_tree(path, Tree(task="x" * 3000, seed=saved))
        assert [tree.seed for tree in load_trees(path)] == list(range(saved))
        filler.unlink()
        save_tree(path, TREE)
        assert len(load_trees(path)) == saved + 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
