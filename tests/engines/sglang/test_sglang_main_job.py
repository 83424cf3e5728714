"""The main job on SGLang: rollouts there, training here, new weights after every step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_process import Server
from served import served

from spark.recipes.policy import CHECKPOINTS
from spark.rollout.store import load_trees

pytestmark = pytest.mark.sglang
SPARK = str(Path(sys.executable).with_name("spark"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("policy") / "log"
    with served(CHECKPOINTS / "first_light", log, page_size=16, max_total_tokens=65536) as found:
        yield found


@pytest.mark.parametrize("where", ["served", "embedded"])
def test_a_few_steps_with_weights_published(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = ["--url", request.getfixturevalue("server").url] if where == "served" else []
    told = subprocess.run(
        [
            *[SPARK, "train", "first_light_smoke", "--engine", "sglang", *url],
            *["--arms", "spark", "--budget_tokens", "4000", "--eval.games.L0", "2"],
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    run = tmp_path / "runs" / "first_light_smoke"
    arm = json.loads((run / "summary.json").read_text())["arms"]["spark"]
    assert arm["generated_tokens"] >= 4000 and arm["trained_tokens"] > 0
    assert arm["forks"] > 0 and arm["reused_tokens"] > 0
    trees = load_trees(run / "trees.jsonl")
    versions = {tree.weight_version for tree in trees}
    assert len(versions) >= 2, "every step rolls out with the weights of the last"
    sampled = sum(sum(node.sampled) for tree in trees for node in tree.nodes)
    assert sampled == arm["generated_tokens"]
