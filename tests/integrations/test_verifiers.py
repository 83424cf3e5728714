"""Traces are read back by verifiers itself, branch for leaf, token for token."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from random_trees import random_tree

from spark.core import Tree
from spark.integrations.verifiers import episode, episodes, main, messages
from spark.train.credit import CreditConfig, credit

CONFIG = CreditConfig()


def decode(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def trees() -> list[Tree]:
    """Trees without empty leaves: a branch without tokens of its own is none."""
    found = (random_tree(seed, 12) for seed in range(40))
    return [tree for tree in found if all(tree.nodes[leaf].tokens for leaf in tree.leaves())][:5]


def test_every_token_stands_in_one_message() -> None:
    for tree in trees():
        nodes = messages(tree, credit(tree, CONFIG), decode)
        assert sum(len(node["token_ids"]) for node in nodes) == sum(
            len(node.tokens) for node in tree.nodes
        )
        assert sum(len(node["logprobs"]) for node in nodes) == sum(
            sum(node.sampled) for node in tree.nodes
        )
        assert all(node["parent"] is None or node["parent"] < at for at, node in enumerate(nodes))


def test_a_tree_without_nodes_is_no_episode() -> None:
    grown = trees()[:2]
    lost = Tree(task="lost", seed=0, info={"errors": [{"error": "reset failed"}]})
    written = list(episodes([grown[0], lost, grown[1]], decode))
    assert [each["id"] for each in written] == [f"{grown[0].task}/0", f"{grown[1].task}/2"]


def test_verifiers_reads_the_branches(tmp_path: Path) -> None:
    store = pytest.importorskip("verifiers.v1.utils.trace_store")
    from verifiers.v1.trace import WireTrace

    written = trees()
    assert len(written) == 5
    lines = [
        json.dumps(episode(tree, decode, CONFIG, f"{tree.task}/{number}"))
        for number, tree in enumerate(written)
    ]
    (tmp_path / store.TRACES_FILE).write_text("\n".join(lines) + "\n")
    episodes = store.read_episodes(tmp_path, WireTrace)
    assert len(episodes) == 5
    for tree, read in zip(written, episodes, strict=True):
        (trace,) = read.traces
        assert (trace.task.key, trace.ok) == (tree.task, True)
        terms = credit(tree, CONFIG)
        assert len(trace.branches) == len(tree.leaves())
        for leaf, branch in zip(sorted(tree.leaves()), trace.branches, strict=True):
            path = [tree.nodes[index] for index in tree.path(leaf)]
            assert branch.token_ids == list(chain(*(node.tokens for node in path)))
            assert branch.sampled_mask == list(chain(*(node.sampled for node in path)))
            drawn = [
                (a - b) * own
                for node in path
                for a, b, own in zip(node.logprobs, node.log_kept_mass, node.sampled, strict=True)
            ]
            assert branch.logprobs == pytest.approx(drawn)
            credits = [
                terms[index][0].advantage * own if terms[index] else 0.0
                for index in tree.path(leaf)
                for own in tree.nodes[index].sampled
            ]
            assert branch.advantages == pytest.approx(credits)


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for missing in ("trees.jsonl", "tokenizer"):
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path)])
        assert stop.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"run={tmp_path} has no {missing}: name a folder of spark train" in told
        (tmp_path / "trees.jsonl").touch()
    assert not (tmp_path / "traces.jsonl").exists()
