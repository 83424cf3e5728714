"""A fork equals an independent request, and recomputes at most one token."""

from __future__ import annotations

import asyncio
import re

import pytest
from offline import Offline, Output
from tiny_models import prompt

pytestmark = pytest.mark.sglang

OFFSETS = range(1, 65)


async def forked_at(engine: Offline, seed: int, offset: int, new: int = 8) -> tuple[Output, ...]:
    """Fork a running parent of a fresh prompt once it has `offset` tokens; stop it afterwards."""
    tokens, tree = prompt(11 + seed % 7, seed), f"tree{seed}"
    child = None
    async for parent in engine.stream(tokens, 2000, tree=tree):
        if child is None and len(parent.tokens) >= offset:
            child = asyncio.create_task(engine.fork(parent, tokens, offset, new, tree=tree))
        elif child is not None and child.done():
            engine.abort(parent)
    assert child is not None
    output = await child
    engine.release(tree)
    assert parent.error is not None, "the parent had finished before its child was done"
    assert output.tokens == engine.greedy(tokens, offset + new)[offset:], f"at {offset}"
    assert output.meta["cached_tokens"] == len(tokens) + offset - 1, "recomputed one token"
    assert parent.tokens[:80] == engine.greedy(tokens, 80)[: len(parent.tokens)]
    return parent, output


def test_every_offset_of_a_running_parent(engine: Offline) -> None:
    async def all_offsets() -> None:
        for first in range(0, len(OFFSETS), 8):
            part = OFFSETS[first : first + 8]
            await asyncio.gather(*(forked_at(engine, 100 + at, at) for at in part))

    engine.run(all_offsets())


def test_fan_out_of_sixteen_among_strangers(engine: Offline) -> None:
    tokens = prompt(21, 1)
    want = engine.greedy(tokens, 60)

    async def fan_out() -> None:
        strangers = [asyncio.create_task(engine.generate(prompt(30 + i, 2), 40)) for i in range(4)]
        kids: list[asyncio.Task[Output]] = []
        async for parent in engine.stream(tokens, 60, tree="fan"):
            if len(parent.tokens) >= 30 and not kids:
                kids = [
                    asyncio.create_task(engine.fork(parent, tokens, 30, 20, tree="fan"))
                    for i in range(16)
                ]
        assert parent.tokens == want
        for kid in await asyncio.gather(*kids):
            assert kid.tokens == want[30:50]
            assert kid.meta["cached_tokens"] == len(tokens) + 29
        for i, stranger in enumerate(await asyncio.gather(*strangers)):
            assert stranger.tokens == engine.greedy(prompt(30 + i, 2), 40)
        engine.release("fan")

    engine.run(fan_out())


def test_forks_of_forks(engine: Offline) -> None:
    tokens = prompt(14, 3)
    want = engine.greedy(tokens, 80)

    async def descend(parent: Output, at: int) -> None:
        """Fork at `at`; while the child runs, fork that."""
        grandchild = None
        how = {"parent": parent.rid, "at": len(tokens) + at, "output": parent.tokens[:at]}
        async for child in engine.stream(tokens, 80, tree="deep", **how):
            whole = Output(child.rid, parent.tokens[:at] + child.tokens)
            if grandchild is None and len(child.tokens) >= 9 and at < 50:
                grandchild = asyncio.create_task(descend(whole, at + 9))
        assert child.tokens == want[at:]
        assert child.meta["cached_tokens"] == len(tokens) + at - 1
        if grandchild is not None:
            await grandchild

    async def grow() -> None:
        first = None
        async for parent in engine.stream(tokens, 80, tree="deep"):
            if first is None and len(parent.tokens) >= 5:
                first = asyncio.create_task(descend(Output(parent.rid, list(parent.tokens)), 5))
        assert first is not None
        await first
        engine.release("deep")

    engine.run(grow())


def test_a_finished_parent_is_forked_and_continued(engine: Offline) -> None:
    tokens, more = prompt(19, 4), prompt(13, 5)

    async def later() -> None:
        parent = await engine.generate(tokens, 45, tree="late")
        # others fill the cache with what is not ours
        await asyncio.gather(*(engine.generate(prompt(50, 6 + i), 20) for i in range(8)))
        for at in (1, 16, 31, 44, 45):
            child = await engine.fork(parent, tokens, at, 6, tree="late")
            assert child.tokens == engine.greedy(tokens, at + 6)[at:]
            assert child.meta["cached_tokens"] >= len(tokens) + at - 1
        whole = [*tokens, *parent.tokens]
        # the next turn: the parent's tokens and new ones are the prompt
        turn = await engine.generate(
            [*whole, *more], 8, tree="late", parent=parent.rid, at=len(whole)
        )
        assert turn.tokens == engine.greedy([*whole, *more], 8)
        assert len(whole) - 1 <= turn.meta["cached_tokens"] <= len(whole)
        engine.release("late")

    engine.run(later())


def test_ancestors_are_aborted(engine: Offline) -> None:
    tokens = prompt(17, 7)
    want = engine.greedy(tokens, 90)

    async def orphan() -> None:
        kids: list[asyncio.Task[Output]] = []
        async for parent in engine.stream(tokens, 200, tree="orphans"):
            if not kids and len(parent.tokens) >= 20:
                kids = [
                    asyncio.create_task(engine.fork(parent, tokens, at, 70, tree="orphans"))
                    for at in (4, 12, 20)
                ]
                engine.abort(parent)
        late = await engine.fork(parent, tokens, 10, 10, tree="orphans")
        assert late.tokens == want[10:20]
        for at, kid in zip((4, 12, 20), await asyncio.gather(*kids), strict=True):
            assert kid.tokens == want[at : at + 70]
            assert kid.meta["cached_tokens"] == len(tokens) + at - 1
        engine.release("orphans")

    engine.run(orphan())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parent": "nobody"}, "'nobody' is not a request of tree"),
        ({"at": 0}, r"spark\.at must be in \[1, 22\], got 0"),
        ({"at": -1}, r"spark\.at must be >= 0 tokens, got -1"),
        ({"at": 23}, r"spark\.at must be in \[1, 22\], got 23"),
        ({"output": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, "tokens differ from the parent's"),
        ({"output": "abc"}, "must be a list of token ids"),
        ({"output": [500]}, "spark.output has token 500"),
        ({"tree": ""}, "spark.tree must be a non-empty string"),
        ({"tree": None}, "spark.parent needs spark.tree"),
        ({"score": 1}, "spark.score must be true or false"),
        ({"max_new_tokens": 10}, "max_new_tokens=10 counts the 10 tokens"),
    ],
)
def test_bad_forks_are_refused(single: Offline, wrong: dict, message: str) -> None:
    tokens = prompt(12, 8)

    async def refuse() -> Output:
        parent = await single.generate(tokens, 10, tree="bad")
        how = {"tree": "bad", "parent": parent.rid, "at": 22, "output": parent.tokens, **wrong}
        bad = await single.generate(tokens, 20, **how)
        single.release("bad")
        return bad

    assert re.search(message, str(single.run(refuse()).error))
    single.check_clean()


def test_a_grammar_that_does_not_compile_costs_its_fork_alone(engine: Offline) -> None:
    """SGLang gives such a request another prompt: what was copied for it is not for that."""
    tokens, stranger = prompt(11, 9), prompt(9, 4)

    async def run() -> list[Output]:
        parent = await engine.generate(tokens, 3, tree="odd")
        found = await asyncio.gather(
            engine.fork(parent, tokens, 2, 8, tree="odd", regex="("),
            engine.fork(parent, tokens, 2, 8, tree="odd"),
            engine.generate(stranger, 12),
        )
        engine.release("odd")
        return found

    bad, child, other = engine.run(run())
    assert bad.error is not None
    assert child.tokens == engine.greedy(tokens, 10)[2:]
    assert other.tokens == engine.greedy(stranger, 12)
    engine.check_clean()
