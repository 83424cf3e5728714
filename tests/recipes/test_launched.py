"""`spark train` on two processes: the curve of one, another number on resume, several servers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from command_server import ENVIRONMENT, serving
from launched import recipe

from spark.recipes.run import train

pytest.importorskip("alfworld")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def launch(processes: int, *args: str | Path, fails: bool = False) -> None:
    started([*TORCHRUN, f"--nproc-per-node={processes}", *map(str, args)], fails)


def started(command: list[str], fails: bool = False) -> None:
    run = subprocess.run(
        command,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert (run.returncode != 0) == fails, run.stderr[-3000:]


def curve(run: Path) -> list[Any]:
    """What every training step logged, clocks apart."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "kl", "clip_ratio", "logprob_mismatch", "trained_tokens")
    return [{name: line[name] for name in names} for line in lines if line["phase"] == "train"]


def close(steps: list[Any]) -> list[Any]:
    """The same steps with sums taken in another order."""
    return [pytest.approx(step, rel=1e-3, abs=1e-5) for step in steps]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process without a launcher."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(recipe(), run)
    return run


def test_two_processes_train_like_one(alone: Path, tmp_path: Path) -> None:
    launch(2, HERE / "launched.py", tmp_path / "run")
    steps = curve(tmp_path / "run")
    assert len(steps) >= 3
    assert steps == close(curve(alone))
    runs = (alone, tmp_path / "run")
    one, two = (json.loads((at / "summary.json").read_text())["arms"]["spark"] for at in runs)
    assert two["generated_tokens"] == one["generated_tokens"]
    assert two["success_after"] == one["success_after"]


def test_a_checkpoint_of_two_is_taken_up_by_one(alone: Path, tmp_path: Path) -> None:
    launch(2, HERE / "launched.py", tmp_path / "run", "--stop-at", "2", fails=True)
    assert len(curve(tmp_path / "run")) == 2
    with pytest.raises(ValueError, match="was written under torchrun: resume it like that"):
        train(recipe(), tmp_path / "run", resume=True)
    launch(1, HERE / "launched.py", tmp_path / "run")
    assert curve(tmp_path / "run") == close(curve(alone))


def test_trees_come_from_two_servers(tmp_path: Path) -> None:
    """A tree stays on the server that its prompt names; both get the weights of every step."""
    serve = ["spark", "serve", "first_light", "--port", "8000", "--chat_template", "append_only"]
    serve.append("--weight_updates")
    with serving(serve, tmp_path) as first, serving(serve, tmp_path) as second:
        launch(2, HERE / "launched.py", tmp_path / "run", "--servers", f"{first},{second}")
        for url in (first, second):
            text = urllib.request.urlopen(f"{url}/metrics").read().decode()
            (generated,) = re.findall(r"^spark:generated_tokens_total (\S+)", text, re.M)
            assert float(generated) > 200
    assert len(curve(tmp_path / "run")) >= 3


@pytest.mark.parametrize(
    "launcher",
    [
        [*TORCHRUN, "--nproc-per-node=2"],
        # no program of its own in some installations: the module behind `accelerate`
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_command_runs_under_a_launcher(launcher: list[str], tmp_path: Path) -> None:
    flags = ["--arms", "spark", "--budget_tokens", "500", "--run_dir", str(tmp_path / "run")]
    started([*launcher, "-m", "spark", "train", "first_light_smoke", *flags])
    assert (tmp_path / "run" / "report.html").exists()
