"""What is refused at a run's start, before anything is spent, and what that leaves behind."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from test_run import micro

from spark.engines.base import EngineError
from spark.engines.http import HTTPEngine
from spark.recipes.check import check
from spark.recipes.config import LoraConfig, Recipe
from spark.recipes.embedded import embedded
from spark.recipes.events import Progress
from spark.recipes.policy import load_policy, with_lora
from spark.recipes.run import train
from spark.recipes.session import Session
from spark.train.config import LossConfig


def changed(recipe: Recipe, part: str, **fields: Any) -> Recipe:
    """Return `recipe` with other fields of its `part`."""
    return dataclasses.replace(
        recipe, **{part: dataclasses.replace(getattr(recipe, part), **fields)}
    )


def test_a_run_that_failed_at_its_start_leaves_its_folder_free(tmp_path: Path) -> None:
    cheap = micro(arms=("spark",), budget_tokens=500)
    with pytest.raises(ValueError, match=r"model\.path='nowhere'"):
        train(changed(cheap, "model", path="nowhere"), tmp_path / "run")
    with pytest.raises(ValueError, match="unknown environment 'nowhere'"):
        train(changed(cheap, "env", name="nowhere"), tmp_path / "run", resume=True)
    with pytest.raises(RuntimeError, match=r"raise num_blocks \(kv_blocks of recipes"):
        train(dataclasses.replace(cheap, kv_blocks=1), tmp_path / "run")
    summary = train(cheap, tmp_path / "run")
    assert summary["arms"]["spark"]["success_after"].keys() == {"L0"}


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run to resume; leave resume out"):
        train(micro(), tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("train", {"report_to": "nobody"}, r"train\.report_to='nobody': .*not supported"),
        ("train", {"report_to": "wandb"}, r"train\.report_to='wandb': .*pip install wandb"),
        ("train", {"reference": "nowhere"}, r"train\.reference='nowhere' cannot be loaded"),
        ("train", {"reference": "scienceworld"}, r"train\.reference='scienceworld' has a vocab"),
        (
            "train",
            {"reference": "first_light", "loss": LossConfig(kl=0.0)},
            r"reference='first_light' has no effect with train\.loss\.kl=0\.0",
        ),
        ("model", {"lora": LoraConfig(rank=2, targets=("q_porj",))}, r"targets=.*not found"),
        ("model", {"lora": LoraConfig(rank=2, targets=("lm_head",))}, "leave it out of the LoRA"),
        ("model", {"lora": LoraConfig(rank=2, targets=("embed_tokens",))}, "leave that out of"),
    ],
)
def test_what_training_would_end_by_is_refused_before_anything_is_evaluated(
    part: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    with pytest.raises(ValueError, match=message):
        train(changed(micro(), part, **fields), tmp_path / "run", on_progress=seen.append)
    assert [progress.phase for progress in seen] == ["load"]


def test_adapters_go_where_they_are_told() -> None:
    model, _ = load_policy(micro().model)
    check(changed(micro(), "model", lora=LoraConfig(rank=2)), model)
    adapted = with_lora(model, LoraConfig(rank=2, targets=("q_proj", "v_proj")), seed=0)
    names = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "v_proj"}


def test_the_local_engine_runs_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_policy(micro().model)
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(ValueError, match=f"device='{device}'.* use .*cpu"):
            embedded(micro(device=device), model, tokenizer)
    # one that every machine has, and none computes on
    monkeypatch.setattr("spark.recipes.embedded.pick_device", lambda name: name)
    with pytest.raises(ValueError, match="on meta tensors"):
        embedded(micro(device="meta"), model, tokenizer)
    with pytest.raises(ValueError, match="device='cpu' is for engine='local' only"):
        micro(device="cpu", engine="vllm")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_that_is_not_installed_says_how_to_install_it(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(ValueError, match=rf"pip install 'spark-branching\[{engine}\]'"):
        Session(micro(engine=engine), *load_policy(micro().model))


class NoTasks:
    """An environment without tasks."""

    def tasks(self, split: str, count: int, seed: int = 0) -> list[str]:
        return []

    def make(self) -> None:
        raise AssertionError("nobody has a task for it")


def test_an_environment_without_tasks_is_named() -> None:
    recipe = changed(micro(), "env", name=f"{__name__}:NoTasks")
    with Session(recipe, *load_policy(recipe.model)) as session:
        for asked in (session.train_games, lambda: session.evaluate("L0")):
            with pytest.raises(ValueError, match=r"env\.name=.*NoTasks' has no tasks in split"):
                asked()


def test_an_engine_that_does_not_take_the_weights_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []

    async def refuse(self: HTTPEngine, *_: Any) -> None:
        raise EngineError("not these")

    async def leave(self: HTTPEngine, *_: Any) -> None:
        left.append(self)

    monkeypatch.setattr(HTTPEngine, "update_weights", refuse)
    monkeypatch.setattr(HTTPEngine, "__aexit__", leave)
    with pytest.raises(EngineError, match="not these"):
        Session(micro(engine="http", url="http://localhost:1"), *load_policy(micro().model))
    assert len(left) == 1


def test_free_text_may_say_what_changes_nothing() -> None:
    recipe = changed(micro(), "rollout", constrain=False)
    for asked, idle in ((recipe, True), (micro(), False)):
        with Session(asked, *load_policy(recipe.model)) as session:
            env = session.source.make()
            _, info = env.reset(session.train_games()[0])
            assert ("look" in info["admissible"]) is idle


def test_a_split_without_games_is_left_out() -> None:
    recipe = changed(micro(), "eval", games={"L0": 2, "L1": 0})
    assert recipe.eval.splits == ["L0"]
    with Session(recipe, *load_policy(recipe.model)) as session:
        session.prepare()
        with pytest.raises(ValueError, match=r"split 'L1' has no games; those of eval\.games: L0"):
            session.evaluate("L1")
