"""Greedy output of the embedded engine equals transformers' `generate`, whatever happened."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES, direct_logits, greedy, prompt, tiny

from spark import LocalEngine
from spark.engines.base import Sample, SamplingParams

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
BLOCK = 4


def engine(family: str, **options) -> LocalEngine:
    options = {"num_blocks": 200, "block_size": BLOCK, "max_batched_tokens": 50, **options}
    return LocalEngine(tiny(family), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_every_length_together(family: str) -> None:
    prompts = [prompt(n, 1) for n in (*range(1, 2 * BLOCK + 2), 23, 60)]

    async def one(local: LocalEngine, tokens: list[int]) -> list[int]:
        seq = await local.open(tokens)
        out = await local.sample(seq, GREEDY)
        await local.extend(seq, tokens[:3])
        out.tokens += (await local.sample(seq, GREEDY)).tokens
        await local.release(seq)
        return out.tokens

    async def main() -> None:
        async with engine(family) as local:
            outs = await asyncio.gather(*(one(local, tokens) for tokens in prompts))
            assert local.stats()["blocks_in_use"] == 0
        for tokens, out in zip(prompts, outs, strict=True):
            assert out[:20] == greedy(family, tokens, 20)
            assert out[20:] == greedy(family, [*tokens, *out[:20], *tokens[:3]], 20)

    asyncio.run(main())


@pytest.mark.parametrize("family", FAMILIES)
def test_forks_of_forks_at_every_offset(family: str) -> None:
    tokens = prompt(BLOCK + 1, 2)
    want = [*tokens, *greedy(family, tokens, 30)]
    short = replace(GREEDY, max_tokens=7)

    async def main() -> None:
        async with engine(family) as local:
            seq = await local.open(tokens)
            await local.sample(seq, GREEDY)
            # the token sampled last takes its place now, not in the first fork below
            await local.release(*await local.fork(seq, 1))
            before = local.stats()
            for at in range(len(tokens), len(tokens) + 21):
                used = local.stats()["blocks_in_use"]
                kids = await local.fork(seq, 2, at=at)
                assert local.stats()["blocks_in_use"] - used <= 2 * (at % BLOCK > 0)
                grandkids = await local.fork(kids[0], 2, at=max(len(tokens), at - 3))
                outs = await asyncio.gather(*(local.sample(k, short) for k in [*kids, *grandkids]))
                for out, start in zip(outs, [at, at, *[max(len(tokens), at - 3)] * 2], strict=True):
                    assert out.tokens == want[start : start + 7]
                for live in (*kids, *grandkids):
                    await local.release(live)
            after = local.stats()
            for counter in ("recomputed", "prefilled", "blocks_in_use"):
                assert after[counter] == before[counter]

    asyncio.run(main())


def test_a_fork_inside_the_prompt() -> None:
    tokens = prompt(3 * BLOCK + 1, 7)

    async def main() -> None:
        async with engine("qwen3") as local:
            seq = await local.open(tokens)
            for at in range(1, len(tokens) + 1):
                (child,) = await local.fork(seq, 1, at=at)
                out = await local.sample(child, replace(GREEDY, max_tokens=5))
                assert out.tokens == greedy("qwen3", tokens[:at], 5)

    asyncio.run(main())


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2"])
def test_preempted_sequences_resume_exactly(family: str) -> None:
    prompts = [prompt(9 + 5 * i, 3) for i in range(6)]

    async def one(local: LocalEngine, tokens: list[int]) -> list[int]:
        seq = await local.open(tokens)
        first = await local.sample(seq, replace(GREEDY, max_tokens=7))
        kids = await local.fork(seq, 2)
        outs = await asyncio.gather(*(local.sample(kid, GREEDY) for kid in kids))
        rest = await local.sample(seq, replace(GREEDY, max_tokens=13))
        assert [*first.tokens, *outs[0].tokens] == [*first.tokens, *outs[1].tokens]
        for live in (seq, *kids):
            await local.release(live)
        assert outs[0].tokens[:13] == rest.tokens
        return first.tokens + rest.tokens

    async def main() -> None:
        async with engine(family, num_blocks=19) as local:
            outs = await asyncio.gather(*(one(local, tokens) for tokens in prompts))
            stats = local.stats()
        assert stats["preemptions"] > 0
        assert stats["recomputed"] > 0
        assert stats["blocks_in_use"] == 0
        assert stats["prefilled"] == sum(map(len, prompts))
        for tokens, out in zip(prompts, outs, strict=True):
            assert out == greedy(family, tokens, 20)

    asyncio.run(main())


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_neox"])
def test_statistics_equal_a_direct_forward(family: str) -> None:
    params = SamplingParams(max_tokens=15, temperature=0.7, top_k=9, seed=5)
    tokens = prompt(11, 4)

    async def main() -> tuple[Sample, Sample]:
        async with engine(family) as local:
            seq = await local.open(tokens)
            out = await local.sample(seq, params)
            (child,) = await local.fork(seq, 1, at=len(tokens) + 6)
            return out, await local.sample(child, replace(params, max_tokens=9))

    out, forked = asyncio.run(main())
    assert forked.tokens == out.tokens[6:]
    logits = direct_logits(tiny(family), [*tokens, *out.tokens])[len(tokens) - 1 : -1]
    for sample, rows in ((out, logits), (forked, logits[6:])):
        chosen = torch.tensor(sample.tokens)[:, None]
        tempered = (rows / 0.7).log_softmax(-1)
        plain = rows.log_softmax(-1)
        kept = tempered.topk(9).values.logsumexp(-1)
        assert torch.tensor(sample.logprobs) == near(tempered.gather(1, chosen)[:, 0])
        assert torch.tensor(sample.log_kept_mass) == near(kept)
        assert torch.tensor(sample.entropies) == near(-(plain.exp() * plain).sum(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_follows_a_bf16_forward(family: str) -> None:
    model = tiny(family, torch.bfloat16)
    tokens = prompt(30, 5)

    async def main() -> Sample:
        async with LocalEngine(model, num_blocks=32, block_size=8) as local:
            return await local.sample(await local.open(tokens), GREEDY)

    out = asyncio.run(main())
    logits = direct_logits(model, [*tokens, *out.tokens])[len(tokens) - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(out.tokens)[:, None])[:, 0]
    assert torch.tensor(out.logprobs) == near(logprobs, 0.15)
    # every choice is the best one up to rounding
    best = logits.log_softmax(-1).max(-1).values
    assert (best - logprobs).max() < 0.15


def test_a_fork_draws_from_the_same_hidden_state() -> None:
    """The parent's next draw and the children's first are the same to the last bit."""
    params = SamplingParams(max_tokens=1, temperature=1.0, seed=3)

    async def main() -> list[Sample]:
        async with engine("qwen3") as local:
            seq = await local.open(prompt(10, 6))
            await local.sample(seq, GREEDY)
            live = [seq, *await local.fork(seq, 3)]
            return await asyncio.gather(*(local.sample(one, params) for one in live))

    first, *others = asyncio.run(main())
    assert all(other.tokens == first.tokens for other in others)
    assert all(other.logprobs == first.logprobs for other in others)
    assert all(other.entropies == first.entropies for other in others)


def near(values: torch.Tensor, tolerance: float = 1e-4):
    return pytest.approx(values.numpy(), abs=tolerance)
