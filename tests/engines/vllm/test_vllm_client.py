"""VLLMEngine: the engine protocol over HTTP, and the main job on a vLLM server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from behaviour import REMOTE, Subject
from models import VOCAB, greedy, model, prompt
from own_process import Server
from server import FLAGS, SPARK, serving
from tiny_models import tokenizer

from spark.engines.base import Engine, SamplingParams
from spark.engines.vllm.client import VLLMEngine
from spark.recipes import RECIPES
from spark.recipes.policy import load_policy, resolve
from spark.recipes.session import Session
from spark.rollout.store import load_trees

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("check", REMOTE, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], server: Server) -> None:
    @asynccontextmanager
    async def start() -> AsyncIterator[Engine]:
        async with VLLMEngine(server.url) as engine:
            yield engine

    subject = Subject(
        start=start,
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens)),
        context=int(FLAGS["max-model-len"]),
        block_size=int(FLAGS["block-size"]),
        vocab_size=VOCAB,
        recomputed=1,
    )
    asyncio.run(check(subject))


@pytest.mark.parametrize("way", ["memory", "disk"])
def test_samples_say_the_weights_they_came_from(server: Server, tmp_path: Path, way: str) -> None:
    old = model("qwen3").state_dict()
    new = {name: tensor * 0.5 if "mlp" in name else tensor for name, tensor in old.items()}
    params = SamplingParams(max_tokens=16, temperature=0.0)

    async def sample(engine: VLLMEngine) -> tuple[list[int], int]:
        seq = await engine.open(prompt(40, 8))
        out = await engine.sample(seq, params)
        await engine.release(seq)
        return out.tokens, out.weight_version

    async def run() -> list[tuple[list[int], int]]:
        folder = tmp_path if way == "disk" else None
        async with VLLMEngine(server.url, weights=folder) as engine:
            first = await sample(engine)
            await engine.update_weights(new, 7)
            second = await sample(engine)
            await engine.update_weights(old, 0)
            return [first, second, await sample(engine)]

    first, second, third = asyncio.run(run())
    assert first == third == (greedy("qwen3", prompt(40, 8), 16), 0)
    assert second[1] == 7 and second[0] != first[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the main job's policy."""
    flags = {"max-model-len": 2048, "num-gpu-blocks-override": 2048}
    folder = tmp_path_factory.mktemp("policy")
    with serving(Path(resolve("first_light")), folder, "--weight_updates", **flags) as started:
        yield started


def test_trees_are_those_of_the_embedded_engine(policy: Server) -> None:
    """Same seeds, same draws: a whole rollout in ALFWorld, actions constrained, forks included."""
    recipe = RECIPES["first_light_smoke"]()
    config = replace(recipe.rollout, horizon=4)
    torch.manual_seed(0)
    with Session(recipe, *load_policy(recipe.model)) as here:
        tasks = here.source.tasks("L0", 2)
        want = here.rollout(tasks, config, seed=3)
        embedded, here.engine = here.engine, VLLMEngine(policy.url)
        got = here.rollout(tasks, config, seed=3)
        here._runner.run(embedded.__aexit__())
    assert sum(tree.info["forks"] for tree in got) > 0
    for ours, theirs in zip(got, want, strict=True):
        assert [node.tokens for node in ours.nodes] == [node.tokens for node in theirs.nodes]
        assert [node.allowed for node in ours.nodes] == [node.allowed for node in theirs.nodes]
        for mine, other in zip(ours.nodes, theirs.nodes, strict=True):
            assert mine.entropies == pytest.approx(other.entropies, abs=1e-4)
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
            assert mine.log_kept_mass == pytest.approx(other.log_kept_mass, abs=1e-3)


def test_the_main_job(policy: Server, tmp_path: Path) -> None:
    """`spark train` with rollouts on vLLM: steps of RL, each published to the running server."""
    command = [SPARK, "train", "first_light_smoke", "--engine", "vllm", "--url", policy.url]
    command += ["--arms", "spark", "--budget_tokens", "4000", "--train.games_per_step", "2"]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    folder = tmp_path / "runs" / "first_light_smoke"
    arm = json.loads((folder / "summary.json").read_text())["arms"]["spark"]
    assert arm["generated_tokens"] >= 4000 and arm["forks"] > 0
    trees = load_trees(folder / "trees.jsonl")
    versions = [tree.weight_version for tree in trees]
    assert len(set(versions)) >= 3, f"several steps, each with its weights: {versions}"
    assert versions == sorted(versions)
    assert all(not tree.info["errors"] for tree in trees)
