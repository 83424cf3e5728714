"""The driver over HTTP: the same trees as with the engine in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from http_client import Client
from local_server import listening

from spark import LocalEngine
from spark.core import Tree
from spark.engines.http import HTTPEngine
from spark.recipes import RECIPES
from spark.recipes.policy import load_policy
from spark.recipes.session import Session, make_source
from spark.rollout.chat import Chat
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
        assert there.stats()["recomputed"] == 0 and asyncio.run(blocks_in_use(url)) == 0
        assert there.stats()["prefilled"] == embedded.stats()["prefilled"]
        here._runner.run(embedded.__aexit__())
    for ours, theirs in zip(got, want, strict=True):
        same_tree(ours, theirs)
    assert sum(tree.info["forks"] for tree in got) > 0


async def blocks_in_use(url: str) -> int:
    """Ask now: answers that tell the client of it may overtake each other."""
    async with Client(url) as client:
        return int((await client.get("/v1/trees"))["stats"]["blocks_in_use"])


def same_tree(ours: Tree, theirs: Tree) -> None:
    exact = ("parent", "turn", "tokens", "sampled", "allowed", "trigger", "reward", "done")
    for mine, other in zip(ours.nodes, theirs.nodes, strict=True):
        assert [getattr(mine, name) for name in exact] == [getattr(other, name) for name in exact]
        for name in ("logprobs", "log_kept_mass", "entropies"):
            assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-4)
    assert not ours.info["errors"]
    for name in ("generated", "reused", "forks", "leaves"):
        assert ours.info[name] == theirs.info[name]


def test_a_tag_forks_right_behind_itself(url: str) -> None:
    _, tokenizer = load_policy(RECIPE.model)
    tag = "</explore>"
    source = make_source(RECIPE.env)
    observation, _ = source.make().reset(source.tasks("L0", 1)[0], 0)

    async def check() -> None:
        async with Client(url) as client:
            body = {
                "prompt": Chat(tokenizer, template=RECIPE.model.template).prompt(observation),
                "n": 8,
                "max_tokens": 24,
                "seed": 1,
                "return_token_ids": True,
                "branching": {"policy": "spark", "roots": 4, "width": 3},
            }
            answer = await client.good(body)
            events = await client.stream(body)
            heads = [node for node in answer["branching"]["nodes"] if node["stop"] == "fork"]
            assert heads and len(answer["choices"]) > 4
            for head in heads:
                assert tokenizer.decode(head["token_ids"]).endswith(tag)
                assert head["trigger"] == "explore"
                assert tokenizer.decode(head["token_ids"]).count(tag) == 1
            streamed = events[-1]["branching"]["nodes"]
            assert [node["token_ids"] for node in streamed] == [
                node["token_ids"] for node in answer["branching"]["nodes"]
            ]
            other = body | {"branching": {"policy": "spark", "roots": 4, "trigger": "<nothing>"}}
            assert len((await client.good(other))["choices"]) == 4

    asyncio.run(check())
