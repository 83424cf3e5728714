"""Methods: what each changes, that it is small, and that every one of them trains."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from spark.core import Tree
from spark.recipes import METHODS, RECIPES
from spark.recipes.config import Recipe
from spark.recipes.run import train
from spark.rollout.store import load_trees
from spark.train.credit import CreditConfig, Term, credit

BASE = RECIPES["first_light_smoke"]()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_is_small_cites_its_source_and_can_be_applied_twice(name: str) -> None:
    method = METHODS[name]
    assert len(inspect.getsource(method).splitlines()) <= 40
    assert len(inspect.getdoc(method) or "") > 60
    once = method(BASE)
    assert method(once) == once
    over = method(METHODS["arpo"](METHODS["gigpo"](BASE)))
    assert over.train == once.train, "nothing of another method is left"
    for part in ("make_rule", "make_planner"):
        assert getattr(over.rollout, part)() == getattr(once.rollout, part)()
    for field in ("branch_at", "pacing"):
        assert getattr(over.rollout, field) == getattr(once.rollout, field)
    kept = ("env", "model", "eval", "cold_start", "seed", "budget_tokens")
    assert all(getattr(once, field) == getattr(BASE, field) for field in kept)
    assert once.train.loss == BASE.train.loss and once.rollout.horizon == BASE.rollout.horizon
    alone = RECIPES[name]()
    assert alone.arms == (name,)
    assert alone.rollout == METHODS[name](RECIPES["first_light"]()).rollout
    credit = dataclasses.replace(alone.train.credit, novelty_bonus=0.5)
    told = dataclasses.replace(
        alone,
        rollout=dataclasses.replace(alone.rollout, leaves=32),
        train=dataclasses.replace(alone.train, credit=credit),
    )
    assert told.arm(name) == told, "what a user says of a method's recipe is what its arm does"


def rollout_of(name: str) -> Any:
    return METHODS[name](BASE).rollout


def credit_of(name: str) -> Any:
    return METHODS[name](BASE).train.credit


def test_published_sizes() -> None:
    spark = rollout_of("spark")
    assert (spark.roots, spark.leaves, spark.width, spark.pacing) == (4, 8, 2, "first_come")
    assert (spark.branch_at, credit_of("spark").once_per_leaf) == ("next", True)
    assert rollout_of("spark_paced").pacing == "paced"
    assert rollout_of("spark_here").branch_at == "flagged"
    arpo = rollout_of("arpo")
    assert (arpo.roots, arpo.leaves, arpo.probability, arpo.entropy_weight) == (8, 16, 0.5, 0.2)
    schemes = {name: credit_of(name).scheme for name in METHODS}
    special = {"tree_grpo": "tree", "treepo": "depth", "at2po": "node", "gigpo": "anchor"}
    special["return_to_success"] = "nested"
    assert {name: scheme for name, scheme in schemes.items() if scheme != "leaf"} == special
    assert METHODS["spear"](BASE).train.replay.size > 0


def micro(*arms: str, **changes: Any) -> Recipe:
    games = {"eval": dataclasses.replace(BASE.eval, games={"L0": 2})}
    train_config = dataclasses.replace(BASE.train, games_per_step=2, checkpoint_every=1)
    values = {"arms": arms, "budget_tokens": 700, "train": train_config, **games, **changes}
    return dataclasses.replace(BASE, **values)


FAST = ("tree_grpo", "spear")
OTHERS = tuple(name for name in METHODS if name not in ("spark", *FAST))


@pytest.mark.parametrize("arms", [FAST, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_methods_train(
    arms: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Any]] = []

    def noted(tree: Tree, config: CreditConfig) -> list[list[Term]]:
        judged.append(dataclasses.asdict(config))
        return credit(tree, config)

    monkeypatch.setattr("spark.recipes.arm.credit", noted)
    summary = train(micro(*arms), tmp_path / "run")
    assert tuple(summary["arms"]) == arms
    for tree, config in zip(load_trees(tmp_path / "run/trees.jsonl"), judged, strict=True):
        plan, own = tree.info["config"], METHODS[tree.info["arm"]](BASE)
        assert (plan["rule"], plan["planner"]) == (own.rollout.rule, own.rollout.planner)
        assert tree.info["credit"] == config
        faded = {"novelty_bonus": config["novelty_bonus"]} if own.train.replay.size else {}
        assert config == dataclasses.asdict(own.train.credit) | faded
        assert len(tree.leaves()) <= own.rollout.leaves
    grown = {t.info["arm"] for t in load_trees(tmp_path / "run/trees.jsonl") if t.info["forks"]}
    assert {"tree_grpo", "treepo", "at2po", "arpo", "fixed"} & set(arms) <= grown


def test_an_unknown_arm_lists_the_methods() -> None:
    with pytest.raises(ValueError, match="unknown method 'grpo'; known: arpo, at2po, chain"):
        micro("grpo")


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.slow
def test_replay_is_taken_up_again(tmp_path: Path) -> None:
    imitating = micro("spear", budget_tokens=6000)
    whole = train(imitating, tmp_path / "whole")

    def interrupt(progress: Any) -> None:
        if (progress.phase, progress.step) == ("rollout", 2):
            raise Stop

    with pytest.raises(Stop):
        train(imitating, tmp_path / "parts", on_progress=interrupt)
    again = train(imitating, tmp_path / "parts", resume=True)
    counters = ("trained_tokens", "generated_tokens", "success_after")
    assert all(again["arms"]["spear"][c] == whole["arms"]["spear"][c] for c in counters)
    one, other = (load(final(tmp_path / name)) for name in ("whole", "parts"))
    # the engine's last bits depend on which blocks of its pool happen to be free
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    # imitation adds tokens to those of the same chains without it
    plain = train(micro("chain", budget_tokens=6000), tmp_path / "plain")
    assert whole["arms"]["spear"]["trained_tokens"] > plain["arms"]["chain"]["trained_tokens"]


def final(run: Path) -> bytes:
    (path,) = run.glob("checkpoints/*/final/model.safetensors")
    return path.read_bytes()


def test_a_central_reference_holds_the_policy(tmp_path: Path) -> None:
    """Anchored to the start by its path the run is the same; to another policy it is not."""
    from spark.recipes.policy import load_policy, save_policy

    model, tokenizer = load_policy(BASE.model)
    for parameter in model.parameters():
        parameter.data += 0.02
    save_policy(model, tokenizer, tmp_path / "other")
    runs = {}
    for name, reference in {"none": None, "start": "first_light", "other": "other"}.items():
        path = str(tmp_path / "other") if reference == "other" else reference
        recipe = micro("chain", budget_tokens=1500)
        recipe = dataclasses.replace(
            recipe, train=dataclasses.replace(recipe.train, reference=path)
        )
        train(recipe, tmp_path / name)
        runs[name] = final(tmp_path / name)
    assert runs["none"] == runs["start"] != runs["other"]


def test_an_arm_may_stop_by_seconds_and_leave_a_curve(tmp_path: Path) -> None:
    recipe = micro("chain", budget_tokens=None, budget_seconds=1e-3)
    summary = train(recipe, tmp_path / "one")
    assert summary["arms"]["chain"]["leaves"] == 2 * BASE.rollout.leaves
    curve = dataclasses.replace(recipe.eval, every=1)
    train(micro("chain", budget_tokens=3000, eval=curve), tmp_path / "curve")
    lines = [json.loads(x) for x in (tmp_path / "curve/metrics.jsonl").read_text().splitlines()]
    points = [line for line in lines if line["phase"] == "curve"]
    steps = {line["step"] for line in lines if line["phase"] == "train"}
    assert [point["step"] for point in points] == sorted(steps - {0}) != []
    for point in points:
        assert 0 <= point["curve_L0"] <= 1 and point["trained_on_tokens"] > 0
    with pytest.raises(ValueError, match="budget_tokens=None needs budget_seconds"):
        micro("chain", budget_tokens=None)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("", "budget_tokens", 0),
        ("", "kv_blocks", 0),
        ("env", "train_games", 0),
        ("train", "games_per_step", 0),
        ("train", "minibatches", 0),
        ("train", "checkpoint_every", 0),
        ("train.replay", "ramp", 0.0),
        ("eval", "games", {"L0": 0}),
        ("eval", "games", {"L0": 2, "L1": -1}),
        ("model.lora", "rank", -1),
        ("model.lora", "alpha", 0),
        ("model.lora", "targets", "q_proj"),
        ("model.lora", "targets", ("q_proj,v_proj",)),
        ("", "seed", -1),
        ("", "seed", 2**32),
        ("", "arms", ("chain", "chain")),
        ("train", "lr", -1.0),
        ("train.loss", "clip_low", -0.1),
        ("train.loss", "clip_high", -0.1),
        ("train.loss", "kl", -0.1),
        ("train.loss", "importance_cap", -1.0),
        ("cold_start.fit", "lr", -1.0),
        ("cold_start.fit", "matrix_lr", float("nan")),
    ],
)
def test_values_that_make_no_sense_are_named(part: str, field: str, value: Any) -> None:
    owner: Any = BASE
    for name in filter(None, part.split(".")):
        owner = getattr(owner, name)
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(owner, **{field: value})


def test_a_learning_curve_needs_games() -> None:
    with pytest.raises(ValueError, match=r"eval.curve='L1' has no games: use one of L0"):
        micro("chain", eval=dataclasses.replace(BASE.eval, games={"L0": 2}, every=1, curve="L1"))


def test_branching_within_a_decision_is_trained_and_evaluated(tmp_path: Path) -> None:
    rollout = dataclasses.replace(BASE.rollout, rule="entropy", branch_at="within")
    train(micro("spark", rollout=rollout, budget_tokens=300), tmp_path / "run")
    trees = load_trees(tmp_path / "run" / "trees.jsonl")
    assert any(node.trigger for tree in trees for node in tree.nodes)
