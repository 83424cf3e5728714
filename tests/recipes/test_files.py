"""Files of a run: journal, checkpoints, policies; and what is said when they are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from spark.core import Node, Tree
from spark.recipes import RECIPES
from spark.recipes.account import ArmAccount
from spark.recipes.checkpoint import complete_checkpoint, latest_checkpoint, verified_state
from spark.recipes.config import ModelConfig
from spark.recipes.journal import Journal, read_json, write_json
from spark.recipes.policy import CHECKPOINTS, load_policy, save_policy
from spark.rollout.store import load_trees

START = CHECKPOINTS / "first_light"


def tree(arm: str, step: int) -> Tree:
    return Tree(task="t", seed=step, nodes=[Node(parent=None)], info={"arm": arm, "step": step})


def test_a_lost_tree_has_no_leaves() -> None:
    costs = ("generated", "reused", "forks", "env_steps", "env_steps_replayed", "env_seconds")
    lost = Tree(task="t", seed=0, nodes=[Node(parent=None)])
    lost.info |= {"leaves": [], **dict.fromkeys(costs, 0)}
    account = ArmAccount()
    account.add(lost)
    assert account.leaves == 0


def test_journal_forgets_what_came_after_a_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    for arm in ("chain", "spark"):
        journal.add_metrics(arm=arm, step=0, phase="evaluate", success_L0=0.2)
        for step in range(3):
            journal.add_tree(tree(arm, step))
            journal.add_metrics(arm=arm, step=step, phase="train", loss=0.5)
    with journal.metrics.open("a") as file:
        file.write('{"arm": "spark", "st')
    journal.drop_after("spark", 1)
    lines = [json.loads(line) for line in journal.metrics.read_text().splitlines()]
    kept = [(line["arm"], line["step"]) for line in lines if line["phase"] == "train"]
    assert kept == [("chain", 0), ("chain", 1), ("chain", 2), ("spark", 0)]
    assert sum(line["phase"] == "evaluate" for line in lines) == 2
    kept = [(each.info["arm"], each.seed) for each in load_trees(journal.trees)]
    assert kept == [("chain", 0), ("chain", 1), ("chain", 2), ("spark", 0)]


def test_a_line_of_metrics_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.add_metrics(arm="spark", step=0, phase="train")
    with journal.metrics.open("a") as file:
        file.write('{"arm": "spark", "step": 1, "phase": "eval')
    journal.add_metrics(arm="spark", step=1, phase="evaluate")
    lines = [json.loads(line) for line in journal.metrics.read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["train", "evaluate"]


def test_a_spoilt_line_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.metrics.write_text('{"arm": "spark", "st{"arm": "spark", "step": 1}\n')
    journal.add_metrics(arm="chain", step=3, phase="train")
    journal.drop_after("spark", 1)
    (line,) = journal.metrics.read_text().splitlines()
    assert json.loads(line)["arm"] == "chain"


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"a": 1})
    assert read_json(tmp_path / "state.json") == {"a": 1}
    (tmp_path / "state.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        Journal(tmp_path).read_state()


def test_latest_complete_checkpoint_and_its_hashes(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for number in (2, 10, 12):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "model.bin").write_bytes(bytes(range(100)))
        if number != 12:
            complete_checkpoint(folder, {"step": number})
    latest = latest_checkpoint(tmp_path)
    assert latest == tmp_path / "checkpoint-10", "12 was never completed"
    assert verified_state(latest)["step"] == 10
    damaged = bytearray((latest / "model.bin").read_bytes())
    damaged[50] ^= 1
    (latest / "model.bin").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint-10 is damaged \(model\.bin"):
        verified_state(latest)


@pytest.mark.parametrize(
    ("name", "goal", "action"),
    [
        ("first_light", "find mug", "go to drawer 1"),
        ("scienceworld", "find plant", "focus on flower pot 4"),
    ],
)
def test_committed_start_is_small_and_loads_by_name(name: str, goal: str, action: str) -> None:
    model, tokenizer = load_policy(RECIPES[name]().model)
    assert 500_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000
    assert sum(path.stat().st_size for path in (CHECKPOINTS / name).iterdir()) <= 4_000_000
    text = f"<explore> {goal} </explore> <action> {action} </action>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_a_damaged_policy_gives_one_clear_error(tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(START, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(ModelConfig(path=str(folder)))
    assert "model.path" in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(START, tmp_path / "policy")
    state = load_file(START / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"damaged: 1 weights are missing.*layers\.1\.mlp"):
        load_policy(ModelConfig(path=str(tmp_path / "policy")))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, tokenizer = load_policy(ModelConfig(path="first_light"))
    tokenizer.add_tokens([f"word{number}" for number in range(300)])
    save_policy(model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer has .* tokens but the model only"):
        load_policy(ModelConfig(path=str(tmp_path)))


def test_saved_policies_load_again(tmp_path: Path) -> None:
    model, tokenizer = load_policy(ModelConfig(path="first_light"))
    save_policy(model, tokenizer, tmp_path)
    again, _ = load_policy(ModelConfig(path=str(tmp_path)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
