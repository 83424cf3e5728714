"""Every environment by its name in a recipe, in this process and in others."""

from dataclasses import replace

import pytest
import random_policy

from spark.envs.pool import PooledSource
from spark.envs.textworld import TextWorldOptions
from spark.envs.webshop import WebShopOptions
from spark.recipes.config import EnvConfig, EvalConfig, Recipe
from spark.recipes.session import Session, make_source
from spark.rollout import RolloutConfig

RECIPE = Recipe(
    name="random",
    env=EnvConfig(
        textworld=TextWorldOptions(level=1, harder_level=11),
        webshop=WebShopOptions(products=60, free_search=False),
        train_games=2,
    ),
    rollout=RolloutConfig(leaves=2, roots=1, horizon=3, max_tokens=100, rule="random"),
    eval=EvalConfig(games={"L0": 1, "L1": 1, "L2": 1}),
    kv_blocks=4096,
)
NEEDS = {"gymnasium": "minigrid", "textworld": "textworld", "webshop": "bm25s"}


@pytest.mark.parametrize("name", NEEDS)
def test_environments_by_name(name):
    pytest.importorskip(NEEDS[name])
    words = random_policy.tokenizer()
    recipe = replace(RECIPE, env=replace(RECIPE.env, name=name))
    with Session(recipe, random_policy.model(words), words) as session:
        (tree, _) = session.rollout(session.train_games(), recipe.rollout, seed=0)
        assert tree.info["errors"] == [] and tree.info["env_steps"] >= 3
        for split in ("L0", "L1", "L2"):
            assert session.evaluate(split) in (0.0, 1.0)


def test_processes_are_ended_with_the_session():
    words = random_policy.tokenizer()
    env = replace(RECIPE.env, name="toy_envs:EndlessSource", workers=1)
    with Session(replace(RECIPE, env=env), random_policy.model(words), words) as session:
        assert isinstance(session.source, PooledSource)
        (tree, _) = session.rollout(session.train_games(), RECIPE.rollout, seed=0)
        assert tree.info["errors"] == [] and len(session.source.pids()) == 1
    assert session.source.pids() == []


def test_options_reach_the_source():
    source = make_source(replace(RECIPE.env, name="textworld"))
    assert source.options is RECIPE.env.textworld
