"""The driver over HTTP: the same trees as with the engine in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from local_server import listening

from spark import LocalEngine
from spark.core import Tree
from spark.engines.http import HTTPEngine
from spark.recipes import RECIPES
from spark.recipes.policy import load_policy
from spark.recipes.session import Session
from spark.rollout.config import RolloutConfig
from spark.serve.app import make_app
from spark.serve.limits import Limits
from spark.serve.local import LocalBackend

RECIPE = RECIPES["first_light_smoke"]()
SHORT = replace(RECIPE.rollout, horizon=5)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the recipe's policy."""
    model, tokenizer = load_policy(RECIPE.model)
    engine = LocalEngine(model, num_blocks=2048, tokenizer=tokenizer)
    with listening(make_app(LocalBackend(engine, tokenizer, "first_light"), Limits())) as url:
        yield url


@pytest.mark.parametrize(
    "config",
    [
        SHORT,
        replace(SHORT, rule="entropy", branch_at="flagged", entropy_threshold=0.2),
        replace(SHORT, rule="entropy", branch_at="within", entropy_threshold=0.5),
        replace(SHORT, constrain=False),
    ],
    ids=["explore", "flagged", "within", "free"],
)
def test_trees_are_those_of_the_embedded_engine(url: str, config: RolloutConfig) -> None:
    torch.manual_seed(0)
    with Session(RECIPE, *load_policy(RECIPE.model)) as here:
        tasks = here.source.tasks("L0", 2)
        want = here.rollout(tasks, config, seed=3)
        there = HTTPEngine(url)
        embedded, here.engine = here.engine, there
        got = here.rollout(tasks, config, seed=3)
        assert there.stats()["recomputed"] == 0 and there.stats()["blocks_in_use"] == 0
        assert there.stats()["prefilled"] == embedded.stats()["prefilled"]
        here._runner.run(embedded.__aexit__())
    for ours, theirs in zip(got, want, strict=True):
        same_tree(ours, theirs)
    assert sum(tree.info["forks"] for tree in got) > 0


def same_tree(ours: Tree, theirs: Tree) -> None:
    exact = ("parent", "turn", "tokens", "sampled", "allowed", "trigger", "reward", "done")
    for mine, other in zip(ours.nodes, theirs.nodes, strict=True):
        assert [getattr(mine, name) for name in exact] == [getattr(other, name) for name in exact]
        for name in ("logprobs", "log_kept_mass", "entropies"):
            assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-4)
    assert not ours.info["errors"]
    for name in ("generated", "reused", "forks", "leaves"):
        assert ours.info[name] == theirs.info[name]
