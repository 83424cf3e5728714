"""vLLM as an engine, over HTTP and beside the caller, and the main job on both."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from behaviour import REMOTE, Subject
from models import VOCAB, greedy, model, prompt
from own_process import Server
from server import ENVIRONMENT, FLAGS, SPARK, serving
from tiny_models import tokenizer

from spark.engines.base import Engine, EngineError, SamplingParams
from spark.engines.served import ServedEngine
from spark.engines.vllm.client import VLLMEngine
from spark.recipes import RECIPES
from spark.recipes.policy import load_policy, resolve
from spark.recipes.session import Session
from spark.rollout.store import load_trees
from spark.serve.vllm.engine import EmbeddedVLLM

pytestmark = pytest.mark.vllm


@dataclass(frozen=True)
class Form:
    """One way to use vLLM."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    engine: Callable[[], AbstractAsyncContextManager[Engine]]


@pytest.fixture(scope="module")
def beside(models: Any) -> Iterator[Form]:
    """One AsyncLLM for all tests, in an event loop that stays."""
    settings = {name.replace("-", "_"): value for name, value in FLAGS.items()}
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}.items():
            patch.setenv(name, value)
        whole = EmbeddedVLLM(models("qwen3"), **settings)

        @asynccontextmanager
        async def engine() -> AsyncIterator[Engine]:
            # counters of its own for every test
            fresh = ServedEngine(whole.server)
            fresh._publish = whole._publish
            async with fresh:
                yield fresh

        yield Form(runner.run, engine)
        runner.run(whole.__aexit__())


@pytest.fixture(params=["http", "disk", "beside"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    if request.param == "beside":
        return request.getfixturevalue("beside")
    url = request.getfixturevalue("server").url
    folder = tmp_path if request.param == "disk" else None
    return Form(asyncio.run, lambda: VLLMEngine(url, weights=folder))


@pytest.mark.parametrize("form", ["http", "beside"], indirect=True)
@pytest.mark.parametrize("check", REMOTE, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], form: Form) -> None:
    subject = Subject(
        start=form.engine,
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens)),
        context=int(FLAGS["max-model-len"]),
        block_size=int(FLAGS["block-size"]),
        vocab_size=VOCAB,
        recomputed=1,
    )
    form.run(check(subject))


async def continued(engine: Engine, tokens: list[int]) -> tuple[list[int], int]:
    """Return 16 greedy tokens and the version of the weights that they came from."""
    seq = await engine.open(tokens)
    try:
        out = await engine.sample(seq, SamplingParams(max_tokens=16, temperature=0.0))
    finally:
        await engine.release(seq)
    return out.tokens, out.weight_version


def test_samples_say_the_weights_they_came_from(form: Form) -> None:
    old, tokens = model("qwen3").state_dict(), prompt(40, 8)
    new = {name: tensor * 0.5 if "mlp" in name else tensor for name, tensor in old.items()}

    async def run() -> list[tuple[list[int], int]]:
        async with form.engine() as engine:
            first = await continued(engine, tokens)
            await engine.update_weights(new, 7)
            second = await continued(engine, tokens)
            await engine.update_weights(old, 0)
            return [first, second, await continued(engine, tokens)]

    first, second, third = form.run(run())
    assert first == third == (greedy("qwen3", tokens, 16), 0)
    assert second[1] == 7 and second[0] != first[0]


@pytest.mark.parametrize("form", ["http", "beside"], indirect=True)
def test_logits_that_are_not_finite_fail_their_request_alone(form: Form) -> None:
    """One token's embedding is NaN: whoever has it in the text is told, the others go on."""
    state, tokens = dict(model("qwen3").state_dict()), prompt(40, 8)
    want = greedy("qwen3", tokens, 16)
    bad = min(set(range(VOCAB)) - {*tokens, *want})
    broken = state["model.embed_tokens.weight"].clone()
    broken[bad] = float("nan")

    async def run() -> list[Any]:
        async with form.engine() as engine:
            await engine.update_weights(state | {"model.embed_tokens.weight": broken}, 1)
            # what the server is was asked by now: the requests below arrive in their order
            await continued(engine, tokens)
            # in this order: attention of vLLM on the CPU lets what a block held before leak
            given = [tokens, tokens, [*tokens, bad], [*tokens[:30], bad, *tokens[30:]]]
            try:
                found = await asyncio.gather(
                    *(continued(engine, each) for each in given), return_exceptions=True
                )
            finally:
                await engine.update_weights(state, 0)
            # new weights find no NaN in the blocks
            return [*found, await continued(engine, tokens)]

    first, second, *failed, behind = form.run(run())
    assert first == second == (want, 1)
    assert behind == (want, 0)
    for error in failed:
        assert isinstance(error, EngineError)
        assert "logits of new token 0 were not finite" in str(error)


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


def test_a_rollout_without_a_server(tmp_path: Path) -> None:
    """`spark rollout --engine vllm` alone runs vLLM beside itself."""
    command = [SPARK, "rollout", "first_light_smoke", "--engine", "vllm", "--kv_blocks", "1024"]
    command += ["--tasks", "2", "--output", str(tmp_path / "trees")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", **ENVIRONMENT}
    run = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    trees = load_trees(tmp_path / "trees" / "trees.jsonl")
    assert len(trees) == 2 and all(not tree.info["errors"] for tree in trees)
