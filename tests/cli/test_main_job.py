"""The main job end to end at a reduced budget, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark.rollout.store import load_trees
from spark.view.report import select

SPARK = str(Path(sys.executable).with_name("spark"))
COUNTERS = {
    "leaves",
    "generated_tokens",
    "prefilled_tokens",
    "reused_tokens",
    "recomputed_tokens",
    "trained_tokens",
    "env_steps",
    "env_steps_replayed",
    "forks",
}


def spark(*args: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command and return what it printed."""
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [SPARK, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == expect, run.stderr
    return run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished small run."""
    cwd = tmp_path_factory.mktemp("job")
    told = spark("train", "first_light_smoke", cwd=cwd)
    assert "report: runs/first_light_smoke/report.html" in told.stdout
    assert "rollout" in told.stderr and "tokens/s" in told.stderr
    return cwd / "runs" / "first_light_smoke"


def test_summary(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["schema"] == 1 and summary["seed"] == 0
    assert 100_000 < summary["model_params"] < 8_000_000
    assert 0 < summary["wall_s"] < 600
    assert set(summary["arms"]) == {"chain", "spark"}
    for arm in summary["arms"].values():
        assert all(isinstance(arm[name], int) for name in COUNTERS)
        assert arm["rollout_wall_s"] > 0 and arm["train_wall_s"] > 0
        assert set(arm["success_before"]) == set(arm["success_after"]) == {"L0", "L1", "L2"}
        assert arm["recomputed_tokens"] == 0 and arm["env_steps_replayed"] == 0
        assert arm["trained_tokens"] <= arm["generated_tokens"]
        assert 12_000 <= arm["generated_tokens"] < 20_000, "the budget, and the step it ends in"
    assert sum(arm["trained_tokens"] for arm in summary["arms"].values()) > 0
    chain, tree = summary["arms"]["chain"], summary["arms"]["spark"]
    assert chain["forks"] == chain["reused_tokens"] == 0
    assert tree["forks"] > 0
    assert tree["reused_tokens"] >= 0.2 * (tree["reused_tokens"] + tree["generated_tokens"])
    assert chain["success_before"] == tree["success_before"], "both start from the same weights"


def test_trees_add_up_to_the_summary(run_dir: Path) -> None:
    arms = json.loads((run_dir / "summary.json").read_text())["arms"]
    trees = load_trees(run_dir / "trees.jsonl")
    for name, arm in arms.items():
        own = [tree for tree in trees if tree.info["arm"] == name]
        assert sum(len(tree.leaves()) for tree in own) == arm["leaves"]
        sampled = sum(sum(node.sampled) for tree in own for node in tree.nodes)
        assert sampled == arm["generated_tokens"], "each sampled token is counted once"
        assert sum(tree.info["reused"] for tree in own) == arm["reused_tokens"]


def test_report_draws_every_tree(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()
    _, _, rest = page.partition('<script type="application/json" id="data">')
    data = json.loads(rest.partition("</script>")[0])
    trees = select(load_trees(run_dir / "trees.jsonl"))
    assert [len(tree["nodes"]) for tree in data["trees"]] == [len(tree.nodes) for tree in trees]
    assert "<action>" in "".join(data["pieces"]), "the run's own tokenizer gives the text"
    assert {"chain", "spark"} <= {s["arm"] for chart in data["charts"] for s in chart["series"]}
    assert 'id="success"' in page and 'id="accounting"' in page


def test_same_folder_is_refused_and_resume_of_a_finished_run_changes_nothing(run_dir: Path) -> None:
    cwd = run_dir.parents[1]
    told = spark("train", "first_light_smoke", cwd=cwd, expect=2).stderr
    assert told.startswith("spark: error: ") and told.count("\n") == 1 and "resume" in told
    before = json.loads((run_dir / "summary.json").read_text())["arms"]
    spark("train", "first_light_smoke", "--resume", cwd=cwd)
    assert json.loads((run_dir / "summary.json").read_text())["arms"] == before
