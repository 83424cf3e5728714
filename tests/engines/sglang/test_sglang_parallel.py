"""Ranks and replicas, and SGLang's own sampler under the observer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from offline import Offline, Output
from tiny_models import direct_logits, prompt, tiny

pytestmark = pytest.mark.sglang


@pytest.fixture(scope="module")
def twins(models: dict[str, Path]) -> Iterator[Offline]:
    how = {"sampling_backend": "pytorch", "page_size": 16, "tp_size": 2}
    with Offline(models["qwen3"], "qwen3", **how) as engine:
        yield engine
        engine.check_clean()


def test_both_ranks_fork_alike(twins: Offline) -> None:
    tokens = prompt(18, 90)
    want = twins.greedy(tokens, 60)

    async def fork() -> None:
        kids: list[asyncio.Task[Output]] = []
        marks = [7, 16, 29]
        async for parent in twins.stream(tokens, 60, tree="tp", score=True):
            at = len(parent.tokens)
            # a slow reader gets several steps at once
            if marks and marks[0] <= at < 60:
                del marks[0]
                for _ in range(2):
                    work = twins.fork(parent, tokens, at, 60 - at, tree="tp", score=True)
                    kids.append(asyncio.create_task(work))
        for kid in await asyncio.gather(*kids):
            at = 60 - len(kid.tokens)
            assert kid.tokens == want[at:]
            assert kid.meta["cached_tokens"] == len(tokens) + at - 1
        assert kids and parent.tokens == want
        twins.release("tp")

    twins.run(fork())


def test_the_stock_samplers_tokens_are_scored_exactly(twins: Offline) -> None:
    tokens = prompt(21, 91)
    how = {"temperature": 0.8, "top_k": 12}
    out: Output = twins.run(twins.generate(tokens, 25, score=True, **how))
    logits = direct_logits(tiny("qwen3"), [*tokens, *out.tokens]).double()
    logits = logits[len(tokens) - 1 : -1]
    whole = torch.log_softmax(logits, -1)
    tempered = torch.log_softmax(logits / 0.8, -1)
    picked = tempered.gather(1, torch.tensor(out.tokens)[:, None])[:, 0]
    mass = tempered.topk(12).values.logsumexp(-1)
    entropy = -(whole.exp() * whole).sum(-1)
    assert torch.tensor(out.scores("entropy")).double() == pytest.approx(entropy, abs=5e-6)
    assert torch.tensor(out.scores("logprob")).double() == pytest.approx(picked, abs=2e-5)
    assert torch.tensor(out.scores("log_kept_mass")).double() == pytest.approx(mass, abs=2e-5)


@pytest.fixture(scope="module")
def replicas(models: dict[str, Path]) -> Iterator[Offline]:
    """Without overlap, where pages are copied on another stream; logprobs at temperature 1."""
    how = {"page_size": 16, "dp_size": 2, "disable_overlap_schedule": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_RETURN_ORIGINAL_LOGPROB", "1")
        with Offline(models["qwen3"], "qwen3", **how) as engine:
            yield engine


def test_a_tree_stays_on_its_replica(replicas: Offline) -> None:
    tokens = prompt(22, 92)
    want = replicas.greedy(tokens, 40)

    async def grow() -> None:
        for rank in (0, 1):
            how = {"tree": f"rank{rank}", "rank": rank}
            parent = await replicas.generate(tokens, 40, **how)
            child = await replicas.fork(parent, tokens, 21, 19, **how)
            assert child.tokens == want[21:]
            assert child.meta["cached_tokens"] == len(tokens) + 20
            assert parent.meta["dp_rank"] == child.meta["dp_rank"] == rank
            # one message reaches every replica
            replicas.release(f"rank{rank}")
            late = await replicas.fork(parent, tokens, 21, 4, **how)
            assert "is not a request of tree" in str(late.error)

    replicas.run(grow())
    assert replicas.run(replicas.flush())


def test_replicas_draw_differently(replicas: Offline) -> None:
    tokens = prompt(9, 94)

    async def draw() -> list[Output]:
        drawn = (
            replicas.generate(tokens, 8, temperature=1.0, rank=rank)
            for _ in range(6)
            for rank in (0, 1)
        )
        return await asyncio.gather(*drawn)

    outputs = replicas.run(draw())
    assert len({tuple(output.tokens) for output in outputs}) == 12


def test_logprobs_are_those_of_temperature_1_where_sglang_is_told_so(replicas: Offline) -> None:
    tokens = prompt(17, 93)
    params = {"max_new_tokens": 12, "temperature": 0.5, "ignore_eos": True}
    told = replicas.engine.generate(
        input_ids=tokens, sampling_params=params, return_logprob=True, routed_dp_rank=0
    )
    output = told["output_ids"]
    logits = direct_logits(tiny("qwen3"), [*tokens, *output])[len(tokens) - 1 : -1]
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(output)[:, None])[:, 0]
    found = [logprob for logprob, *_ in told["meta_info"]["output_token_logprobs"]]
    assert torch.tensor(found) == pytest.approx(picked, abs=2e-5)
