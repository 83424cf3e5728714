"""Random programs of open, extend, fork, sample and release in a pool too small for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import direct_logits, prompt, tiny

from spark import LocalEngine
from spark.engines.base import SamplingParams

LONGEST = 60


@dataclass
class Mirror:
    """What a sequence should hold."""

    tokens: list[int]
    sampled: list[int] = field(default_factory=list)
    """Positions the engine sampled."""


ACTIONS = st.tuples(
    st.sampled_from(["sample", "sample", "extend", "fork", "release"]), st.integers(0, 999)
)


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    opened=st.lists(st.integers(1, 30), min_size=3, max_size=6),
    rounds=st.lists(st.lists(ACTIONS, min_size=3, max_size=8), min_size=2, max_size=6),
    num_blocks=st.integers(15, 20),
    budget=st.sampled_from([3, 17, 200]),
)
def test_random_programs(
    family: str, opened: list[int], rounds: list[list], num_blocks: int, budget: int
) -> None:
    asyncio.run(_program(family, opened, rounds, num_blocks, budget))


async def _program(
    family: str, opened: list[int], rounds: list[list], num_blocks: int, budget: int
) -> None:
    model = tiny(family)
    engine = LocalEngine(model, num_blocks=num_blocks, block_size=4, max_batched_tokens=budget)
    prompts = [prompt(length, i) for i, length in enumerate(opened)]
    handles = await asyncio.gather(*(engine.open(tokens) for tokens in prompts))
    live = {h: Mirror(list(tokens)) for h, tokens in zip(handles, prompts, strict=True)}
    given_tokens, reused, ended = sum(opened), 0, []

    async def act(handle: int, action: str, number: int) -> None:
        nonlocal given_tokens, reused
        mirror = live[handle]
        room = LONGEST - len(mirror.tokens)
        if action == "release":
            await engine.release(handle)
            ended.append(live.pop(handle))
        elif action == "fork":
            at = 1 + number % len(mirror.tokens)
            kids = await engine.fork(handle, 1 + number % 2, at=at)
            sampled = [i for i in mirror.sampled if i < at]
            reused += len(kids) * len(sampled)
            live.update({kid: Mirror(mirror.tokens[:at], list(sampled)) for kid in kids})
        elif action == "extend" and room:
            extra = prompt(min(room, 1 + number % 9), number)
            await engine.extend(handle, extra)
            mirror.tokens += extra
            given_tokens += len(extra)
        elif action == "sample" and room:
            params = SamplingParams(max_tokens=min(room, 1 + number % 9), temperature=0.0)
            out = await engine.sample(handle, params)
            mirror.sampled += range(len(mirror.tokens), len(mirror.tokens) + len(out.tokens))
            mirror.tokens += out.tokens

    for actions in rounds:
        # one action per sequence at a time, those of a round all at once
        chosen = dict(zip(list(live), actions, strict=False))
        await asyncio.gather(*(act(handle, *what) for handle, what in chosen.items()))

    stats = engine.stats()
    assert stats["reused"] == reused
    if not stats["preemptions"]:
        assert stats["recomputed"] == 0
    for handle, mirror in live.items():
        assert engine.length(handle) == len(mirror.tokens)
        await engine.release(handle)
    assert engine.stats()["blocks_in_use"] == 0
    assert stats["prefilled"] == given_tokens
    for mirror in [*live.values(), *ended]:
        logits = direct_logits(model, mirror.tokens)
        for position in mirror.sampled:
            row = logits[position - 1]
            assert row[mirror.tokens[position]] >= row.max() - 1e-4
