"""A pool too small for its trees: requests are retracted, claims yield, nothing comes out wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from offline import Offline, Output
from tiny_models import prompt

pytestmark = pytest.mark.sglang


@pytest.fixture(scope="module", params=[1, 16])
def tight(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[Offline]:
    """A pool of 512 tokens that promises more than it has."""
    with Offline(
        models["qwen3"],
        "qwen3",
        page_size=request.param,
        max_total_tokens=512,
        max_running_requests=32,
        schedule_conservativeness=0.01,
    ) as engine:
        yield engine
        engine.check_clean()


def test_retracted_parents_and_children_come_out_right(tight: Offline) -> None:
    # a slow machine may start the children so far apart that a round fits the pool
    rounds = (squeezed(tight, seed) for seed in range(60, 66))
    assert any(retracted > 0 for retracted in rounds), "the pool was never small enough"


def squeezed(tight: Offline, seed: int) -> int:
    """Check a parent and 24 children that do not fit together; return how many were retracted."""
    tokens = prompt(20, seed)
    want = tight.greedy(tokens, 120)

    async def grow() -> list[Output]:
        kids: list[asyncio.Task[Output]] = []
        async for parent in tight.stream(tokens, 120, tree="squeezed", score=True):
            for at in range(len(kids) * 4 + 8, len(parent.tokens) + 1, 4):
                if len(kids) < 24:
                    how = {"tree": "squeezed", "score": True}
                    fork = tight.fork(parent, tokens, at, 120 - at, **how)
                    kids.append(asyncio.create_task(fork))
        return [parent, *await asyncio.gather(*kids)]

    parent, *kids = tight.run(grow())
    tight.release("squeezed")
    assert len(kids) == 24
    assert parent.tokens == want
    for kid in kids:
        assert kid.error is None
        assert kid.tokens == want[-len(kid.tokens) :]
        assert len(kid.scores("entropy")) == len(kid.tokens)
    return sum(int(out.meta["num_retractions"]) for out in (parent, *kids))


def test_claims_yield_before_anybody_waits_forever(tight: Offline) -> None:
    async def fill() -> list[Output]:
        """Keep more finished trees than the pool holds; then ask for nearly all of it."""
        found = [await tight.generate(prompt(90, 61 + i), 30, tree=f"kept{i}") for i in range(8)]
        large = prompt(240, 70)
        found.append(await tight.generate(large, 12))
        assert found[-1].tokens == tight.greedy(large, 12)
        # claims that yielded cost a computation, not the fork
        first = await tight.fork(found[0], prompt(90, 61), 10, 8, tree="kept0")
        assert first.tokens == found[0].tokens[10:18]
        last = await tight.fork(found[7], prompt(90, 68), 10, 8, tree="kept7")
        assert last.tokens == found[7].tokens[10:18]
        return found

    outs = tight.run(fill())
    assert all(out.error is None for out in outs)
    for i in range(8):
        tight.release(f"kept{i}")


def test_a_flushed_cache_costs_a_computation_only(tight: Offline) -> None:
    tokens = prompt(40, 80)

    async def flush() -> Output:
        parent = await tight.generate(tokens, 30, tree="flushed")
        assert await tight.flush()
        child = await tight.fork(parent, tokens, 17, 13, tree="flushed")
        assert child.tokens == parent.tokens[17:]
        return child

    assert tight.run(flush()).meta["cached_tokens"] == 0
    tight.release("flushed")
