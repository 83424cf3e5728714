"""The report: complete, self-contained, and clear about what is missing or broken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sample_run import WORDS, make_tree, write_run

from spark.core import Node, Tree
from spark.rollout.store import load_trees, save_tree
from spark.train.credit import CreditConfig, credit
from spark.view.records import Pieces, charts, tree_record
from spark.view.report import TREES_PER_ARM, percent, select, selection_note, write_report
from spark.view.run import load_run


def embedded(page: Path) -> dict:
    """Return the data in a page."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S
    )
    assert found
    return json.loads(found.group(1))


def test_page_holds_every_node_and_needs_no_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = write_report(run)
    assert page == run / "report.html"
    data, trees = embedded(page), load_trees(run / "trees.jsonl")
    assert [len(tree["nodes"]) for tree in data["trees"]] == [len(tree.nodes) for tree in trees]
    urls = set(re.findall(r"\b(?:https?:)?//[\w.]+", page.read_text()))
    assert urls <= {"http://www.w3.org"}, "only the name space of SVG"
    assert not list(run.glob("*.partial"))


def test_success_has_standard_errors(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run")).read_text()
    cells = re.findall(r"<td>([^<]*)</td>", page.partition('id="success"')[2])
    assert cells[:3] == ["34.0 ± 4.7", "48.0 ± 5.0", "+14.0"]
    assert cells[6:9] == ["10.0", "8.0", "−2.0"], "no error where the number of games is unknown"
    assert "100 on L0, 64 on L1" in page


def test_node_text_cannot_end_the_script(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run")).read_text()
    assert page.count("</script>") == 2
    assert r"\u003c/script\u003e\u003cb\u003e" in page


def test_a_tree_whose_scores_are_not_known_is_drawn(tmp_path: Path) -> None:
    zeros = {"logprobs": [0.0] * 2, "log_kept_mass": [0.0] * 2, "entropies": [0.0] * 2}
    bare = {"parent": 0, "turn": 0, "done": True}
    nodes = [
        Node(parent=None, turn=-1, tokens=[5, 6], sampled=[False] * 2, **zeros),
        Node(**bare, tokens=[7, 8], sampled=[True] * 2, **zeros),
        Node(**bare),
    ]
    save_tree(tmp_path / "trees.jsonl", Tree(task="t", seed=1, nodes=nodes))
    (drawn,) = embedded(write_report(tmp_path / "trees.jsonl"))["trees"]
    assert [node["entropy"] for node in drawn["nodes"]] == [None, 0.0, None]


def test_records_carry_the_numbers_of_the_tree() -> None:
    tree = make_tree(3, arm="spark", step=2)
    pieces = Pieces(lambda ids: " ".join(map(str, ids)))
    record = tree_record(tree, pieces)
    terms = credit(tree, CreditConfig())
    for node, drawn, (term,) in zip(tree.nodes, record["nodes"], terms, strict=True):
        text = "".join(pieces.texts[piece] for piece in drawn["tokens"])
        assert text == " ".join(map(str, node.tokens))
        assert drawn["advantage"] == pytest.approx(term.advantage, abs=1e-4)
        assert [node.tokens[at] for at in drawn["sampled"]] == [
            token for token, own in zip(node.tokens, node.sampled, strict=True) if own
        ]
        assert drawn["trigger"] == node.trigger
    rewards = {
        at: node["total_reward"]
        for at, node in enumerate(record["nodes"])
        if "total_reward" in node
    }
    assert rewards == {leaf: tree.total_reward(leaf) for leaf in tree.leaves()}


def test_pieces_keep_spaces_and_repeat_no_text(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    pieces = Pieces(run.decode)
    ids = [WORDS.index(word) for word in ("go", "to", "drawer", "1", "go", "to")]
    assert "".join(pieces.texts[piece] for piece in pieces.split(ids)) == "go to drawer 1 go to"
    assert len(set(pieces.texts)) == len(pieces.texts)


def test_folder_of_trees_is_no_unfinished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    (run / "metrics.jsonl").unlink()
    assert "not finished" not in write_report(run).read_text()


def test_unfinished_run_is_drawn_with_a_notice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    assert "not finished" in write_report(run).read_text()
    (run / "trees.jsonl").rename(tmp_path / "trees.jsonl")
    assert "No tree is recorded yet" in write_report(run).read_text()
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="is not a run"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", "summary.json is not JSON"),
        ("summary.json", "[]", "holds a list"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl is not JSON"),
        ("trees.jsonl", '{"hello": 1}\n', "trees.jsonl, line 1"),
        ("tokenizer/tokenizer.json", "{}", "is not a tokenizer"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_without_a_tokenizer_tokens_are_ids(tmp_path: Path) -> None:
    save_tree(tmp_path / "trees.jsonl", make_tree(0, arm="spark", step=0))
    page = write_report(tmp_path / "trees.jsonl")
    assert page == tmp_path / "trees.html"
    assert "shown as ids" in page.read_text()
    assert set("".join(embedded(page)["pieces"])) <= set("0123456789 ")


def test_selection_spans_training() -> None:
    trees = [make_tree(step, arm=arm, step=step) for arm in ("a", "b") for step in range(40)]
    chosen = select(trees)
    assert len(chosen) == 2 * TREES_PER_ARM
    assert [tree.info["step"] for tree in chosen[:TREES_PER_ARM]][:: TREES_PER_ARM - 1] == [0, 39]
    assert select(trees[:3]) == trees[:3]
    assert selection_note(trees).startswith("24 of 80 trees") and not selection_note(trees[:3])


def test_tree_that_failed_before_it_began_is_left_out() -> None:
    failed = Tree(task="L0/1", seed=0, info={"arm": "a", "errors": [{"error": "OSError: x"}]})
    assert select([failed]) == []
    told = make_tree(1, arm="a", step=0)
    told.info["errors"] = [{"error": "EngineError: NaN"}]
    assert "failed: EngineError: NaN" in tree_record(told, Pieces(str))["facts"]


def test_charts_skip_single_points_and_text() -> None:
    lines = [
        {"arm": "spark", "step": 0, "reward": 0.1, "note": "x", "once": 1, "eval": {"L0": 0.2}},
        {
            "arm": "spark",
            "step": 1,
            "reward": 0.4,
            "flag": True,
            "bad": float("nan"),
            "eval": {"L0": 1},
        },
    ]
    drawn = {chart["name"]: chart["series"] for chart in charts(lines)}
    assert drawn == {
        "reward": [{"arm": "spark", "points": [[0, 0.1], [1, 0.4]]}],
        "eval/L0": [{"arm": "spark", "points": [[0, 0.2], [1, 1]]}],
    }


def test_standard_error() -> None:
    assert percent(0.5, 100) == "50.0 ± 5.0"
    assert percent(0.5, None) == "50.0"
    assert percent(None, 100) == "–"
