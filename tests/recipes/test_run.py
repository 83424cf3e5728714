"""The experiment at its smallest: interruption, resume, refusals, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spark.recipes import RECIPES
from spark.recipes.arm import ArmRun
from spark.recipes.cold_start import sft
from spark.recipes.config import LoraConfig, Recipe
from spark.recipes.events import Progress
from spark.recipes.journal import Journal
from spark.recipes.policy import load_policy
from spark.recipes.run import train
from spark.recipes.session import Session
from spark.rollout.store import load_trees
from spark.train.team import Team

pytest.importorskip("alfworld")

CLOCKS = ("rollout_wall_s", "train_wall_s", "env_wall_s")


def micro(**changes: Any) -> Recipe:
    recipe = RECIPES["first_light_smoke"]()
    recipe = dataclasses.replace(
        recipe,
        budget_tokens=4_500,
        rollout=dataclasses.replace(recipe.rollout, leaves=6, roots=3),
        eval=dataclasses.replace(recipe.eval, games={"L0": 2}),
        train=dataclasses.replace(recipe.train, games_per_step=2, checkpoint_every=1),
    )
    return dataclasses.replace(recipe, **changes)


def without_clocks(summary: dict[str, Any]) -> dict[str, Any]:
    arms = {
        arm: {name: value for name, value in record.items() if name not in CLOCKS}
        for arm, record in summary["arms"].items()
    }
    return summary | {"wall_s": 0, "arms": arms}


def lasting(run: Path) -> tuple[Any, ...]:
    """What a run leaves behind, clocks apart."""
    trees = [
        (tree.task, tree.seed, tree.info["arm"], tree.info["step"], tree.nodes)
        for tree in load_trees(run / "trees.jsonl")
    ]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = {"tokens_per_s", "rollout_s", "train_s"}
    metrics = [{k: v for k, v in line.items() if k not in clocks} for line in lines]
    weights = [
        path.read_bytes() for path in sorted(run.glob("checkpoints/*/final/model.safetensors"))
    ]
    return trees, metrics, weights


class Stop(KeyboardInterrupt):
    pass


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run, in which both arms have something to learn from."""
    run = tmp_path_factory.mktemp("straight") / "run"
    summary = train(micro(), run)
    assert all(arm["trained_tokens"] > 0 for arm in summary["arms"].values())
    return run, summary


@pytest.mark.parametrize(
    ("arm", "phase", "step"),
    [
        ("spark", "rollout", 0),
        ("spark", "train", 2),
        ("chain", "rollout", 1),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_result(
    straight: tuple[Path, dict[str, Any]], tmp_path: Path, arm: str, phase: str, step: int
) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.arm, progress.phase, progress.step) == (arm, phase, step):
            raise Stop

    with pytest.raises(Stop):
        train(micro(), tmp_path / "run", on_progress=interrupt)
    summary = train(micro(), tmp_path / "run", resume=True)
    assert without_clocks(summary) == without_clocks(straight[1])
    for left, right in zip(lasting(tmp_path / "run"), lasting(straight[0]), strict=True):
        assert left == right


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    train(micro(arms=("spark",), budget_tokens=500), tmp_path / "run", on_progress=seen.append)
    phases = [progress.phase for progress in seen]
    assert phases[0] == "load" and phases[-1] == "done"
    assert {"evaluate", "rollout", "train"} <= set(phases)
    shares = [progress.done_share for progress in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_another_recipe_does_not_resume_a_run(straight: tuple[Path, dict[str, Any]]) -> None:
    other = dataclasses.replace(micro(seed=1), train=dataclasses.replace(micro().train, lr=1e-9))
    with pytest.raises(ValueError, match=r"started with other settings \(seed, train\.lr; recipe"):
        train(other, straight[0], resume=True)
    with pytest.raises(ValueError, match="holds a run; add --resume"):
        train(micro(), straight[0])


def test_an_interrupted_run_is_one_before_its_first_evaluation(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.phase, progress.step) == ("train", 1):
            raise Stop

    known = {"L0": 0.5}
    with pytest.raises(Stop):
        train(micro(), tmp_path / "run", on_progress=interrupt, start=known)
    with pytest.raises(ValueError, match="holds a run; add --resume"):
        train(micro(seed=1), tmp_path / "run", start=known)
    with pytest.raises(ValueError, match="started with other settings"):
        train(micro(seed=1), tmp_path / "run", resume=True, start=known)


def test_a_greedy_policy_is_not_trained(tmp_path: Path) -> None:
    greedy = dataclasses.replace(micro().rollout, temperature=0.0)
    with pytest.raises(ValueError, match=r"rollout\.temperature=0"):
        train(micro(rollout=greedy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_budgets_of_training_do_not_cut_evaluations() -> None:
    whole = micro()
    cut = dataclasses.replace(whole.rollout, max_seconds=1e-3, max_generated_tokens=8)
    assert success(micro(rollout=cut)) == success(whole)


def success(recipe: Recipe) -> list[bool]:
    with Session(recipe, *load_policy(recipe.model)) as session:
        return session.evaluate_games("L0")


def test_the_local_engine_has_the_precision_of_the_recipe() -> None:
    half = dataclasses.replace(micro().model, dtype="bfloat16")
    recipe = micro(model=half)
    model, tokenizer = load_policy(half)
    with Session(recipe, model, tokenizer) as session:
        session.publish(dict(model.state_dict()), 1)
        (tree,) = session.rollout(session.source.tasks("L0", 1), recipe.rollout, seed=0)
        assert {weight.dtype for weight in session.engine.model.parameters()} == {torch.bfloat16}
        frequencies = [b for n, b in session.engine.model.named_buffers() if "inv_freq" in n]
    assert frequencies and all(buffer.dtype == torch.float32 for buffer in frequencies)
    assert tree.info["leaves"] and not tree.info["errors"]
    assert model.dtype == torch.float32


def test_a_system_prompt_opens_every_tree(tmp_path: Path) -> None:
    told = dataclasses.replace(micro().model, system="put mug in drawer")
    recipe = micro(model=told)
    with Session(recipe, *load_policy(told)) as session:
        tasks = session.source.tasks("L0", 1)
        (tree,) = session.rollout(tasks, recipe.rollout, seed=0)
        assert told.system in session.chat.decode(tree.nodes[0].tokens).split("<|user|>")[0]
    with pytest.raises(ValueError, match=r"model\.system='put mug in drawer'"):
        sft(recipe, tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.arm, progress.phase, progress.step) == ("chain", "rollout", 2):
            raise Stop

    with pytest.raises(Stop):
        train(micro(), tmp_path / "run", on_progress=interrupt)
    folder = tmp_path / "run" / "checkpoints" / "chain"
    latest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (latest / "optimizer.pt").write_bytes(b"not an optimiser")
    with pytest.raises(ValueError, match=rf"{latest.name} is damaged \(optimizer\.pt"):
        train(micro(), tmp_path / "run", resume=True)
    latest.rename(tmp_path / "aside")
    summary = train(micro(), tmp_path / "run", resume=True)
    assert without_clocks(summary) == without_clocks(straight[1])


def test_adapters_train_and_are_merged_into_the_final_policy(tmp_path: Path) -> None:
    recipe = micro(arms=("spark",), budget_tokens=1_000)
    lora = dataclasses.replace(recipe.model, lora=LoraConfig(rank=2, alpha=4))
    summary = train(dataclasses.replace(recipe, model=lora), tmp_path / "run")
    assert summary["arms"]["spark"]["recomputed_tokens"] == 0
    assert (tmp_path / "run/checkpoints/spark/final/model.safetensors").exists()


def test_adapters_begin_as_the_seed_says(tmp_path: Path) -> None:
    recipe = micro(arms=("spark",))
    lora = dataclasses.replace(recipe.model, lora=LoraConfig(rank=2))
    model, _ = load_policy(lora)

    def adapters(seed: int) -> list[torch.Tensor]:
        own = dataclasses.replace(recipe, model=lora, seed=seed)
        journal = Journal(tmp_path)
        arm = ArmRun(own, "spark", model, None, journal, lambda arm, phase: None, Team())
        return [tensor for name, tensor in arm.model.state_dict().items() if "lora_A" in name]

    first, again, other = adapters(0), adapters(0), adapters(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("name", ["firstlight", "first_light_"])
def test_unknown_recipe(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown recipe '{name}'; known: .*first_light, "):
        RECIPES[name]
