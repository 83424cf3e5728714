"""The example of docs/your_own.md: its rules, its split that nobody can know, its commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from random import Random

import pytest

from spark.commands.arguments import named_recipe, parse
from spark.commands.train import TrainOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_own.md").read_text()
sys.path.append(str(ROOT / "examples"))
levers = import_module("levers")

SMALL = {
    "spark env check": ["--depths", "5", "--continuations", "3"],
    "spark sft": ["--cold_start.fit.steps", "3", "--cold_start.episodes", "6"],
    "spark train": [
        *("--budget_tokens", "800", "--train.games_per_step", "2"),
        *(f"--eval.games.{split}={games}" for split, games in (("L0", 3), ("L1", 2), ("L2", 2))),
    ],
}


def solved(task: str) -> bool:
    env = levers.Walk()
    env.reset(task)
    while env.ways:
        env.step(f"go {env.ways[0]}")
    text, reward, over, *_, info = env.step(f"pull {env.lever}")
    return bool(over and reward == 1.0 and info["won"] and text == "A door opens.")


def test_every_task_can_be_solved_and_walls_stop_nobody() -> None:
    source = levers.Levers()
    for split in ("train", "L0", "L1", "L2"):
        assert all(solved(task) for task in source.tasks(split, 20, seed=1))
    assert source.tasks("L0", 9) == source.tasks("L0", 9) != source.tasks("train", 9)
    env = levers.Walk()
    env.reset("fox/north,east")
    assert env.step("go south")[0] == "A wall. The way goes north."
    assert env.step("pull red")[0] == "Nothing happens."
    assert env.step("go north")[0] == "The way goes east, to the levers."
    with pytest.raises(ValueError, match="none of ours"):
        env.reset("fox/up")


def test_signs_of_l2_are_in_no_other_split() -> None:
    signs = {
        split: {task.split("/")[0] for task in levers.Levers().tasks(split, 200)}
        for split in ("train", "L0", "L1", "L2")
    }
    assert signs["L2"] == set(levers.UNSEEN)
    assert signs["train"] == signs["L0"] == signs["L1"] == set(levers.SIGNS)


def test_the_expert_knows_the_way_and_a_quarter_of_the_levers() -> None:
    episodes = [
        levers.demonstration("owl/" + "east," * 3 + "west", Random(i), 30, 0.2) for i in range(400)
    ]
    assert 0.36 < sum(each.won for each in episodes) / 400 < 0.52
    for each in episodes:
        flagged = [step.explorative for step in each.steps]
        assert flagged[-1] is False and flagged[-2] is True
        assert all(step.action.startswith("go ") for step in each.steps[:-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the page's commands in small, in a copy of the example's folder."""
    where = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "examples" / "levers.py", where)
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    assert len(lines) == len(SMALL)
    for line in lines:
        (small,) = [flags for start, flags in SMALL.items() if line.startswith(start)]
        _, *arguments = line.split()
        command = [sys.executable, "-m", "spark", *arguments, *small]
        run = subprocess.run(
            command,
            cwd=where,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{line}: {run.stderr[-2000:]}"
    return where


def test_the_commands_of_the_page_run(folder: Path) -> None:
    assert (folder / "runs" / "levers_start" / "model.safetensors").exists()
    assert (folder / "runs" / "levers" / "report.html").exists()
    arms = json.loads((folder / "runs" / "levers" / "summary.json").read_text())["arms"]
    assert set(arms) == {"spark", "chain"}
    assert all(set(arm["success_after"]) == {"L0", "L1", "L2"} for arm in arms.values())


def test_the_flags_of_a_chat_model_are_fields() -> None:
    found = re.search(r"^spark train (.*?[^\\])$", PAGE.partition("```console")[2], re.S | re.M)
    assert found
    _, recipe, flags = named_recipe(found[1].replace("\\\n", "").split(), "spark train")
    default = TrainOptions(run_dir=Path("runs"), recipe=recipe)
    told = parse(TrainOptions, flags, prog="x", default=default).recipe
    assert (told.engine, told.url) == ("vllm", "http://localhost:8000")
    assert told.model.system == "agent" and told.model.lora.rank == 16
    assert told.train.lr < recipe.train.lr and told.eval.splits == ["L0", "L1"]


def test_a_function_of_something_else_is_no_recipe() -> None:
    with pytest.raises(ValueError, match=r"'levers:Walk' returns Walk, not a Recipe"):
        named_recipe(["levers:Walk"], "spark train")
