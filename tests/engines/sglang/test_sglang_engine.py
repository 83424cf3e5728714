"""The client of a SGLang server obeys the engine protocol; new weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from behaviour import BEHAVIOUR, GREEDY, Subject, run
from offline import CONTEXT
from served import Server
from tiny_models import VOCAB, greedy, prompt, tiny, tokenizer

from spark.engines.base import Engine
from spark.engines.sglang.client import SGLangEngine

pytestmark = pytest.mark.sglang

OTHERWISE = {
    "constraints_limit_and_are_recorded": "its constraint is a Python object of the test",
    "a_bad_constraint_fails_alone": "its constraint is a Python object of the test",
    "cancelling_leaves_the_engine_sane": "needs tokens while they are sampled",
    "forks_of_forks_continue_exactly": "a fork computes one token again here",
    "the_accounts_add_up": "a fork computes one token again here",
}
"""Checks that cannot be asked of this engine as they are; see the tests below."""
CHECKS = [check for check in BEHAVIOUR if check.__name__ not in OTHERWISE]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], server: Server) -> None:
    @asynccontextmanager
    async def start() -> AsyncIterator[Engine]:
        async with SGLangEngine(server.url) as engine:
            yield engine

    subject = Subject(
        start=start,
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens)),
        context=CONTEXT - 2,
        block_size=16,
        vocab_size=VOCAB,
    )
    asyncio.run(check(subject))


def test_forks_compute_one_token_again(server: Server) -> None:
    tokens = prompt(19, 70)
    want = greedy("qwen3", tokens, 40)

    async def fork() -> None:
        async with SGLangEngine(server.url) as engine:
            seq = await engine.open(tokens)
            await engine.sample(seq, replace(GREEDY, max_tokens=20))
            before = engine.stats()["recomputed"]
            kids = [*await engine.fork(seq, 3), *await engine.fork(seq, 2, at=19 + 7)]
            outs = await asyncio.gather(*(engine.sample(kid, GREEDY) for kid in kids))
            (grandchild,) = await engine.fork(kids[0], 1)
            last = await engine.sample(grandchild, replace(GREEDY, max_tokens=8))
            assert [out.tokens for out in outs] == [want[20:32]] * 3 + [want[7:19]] * 2
            assert last.tokens == want[32:40]
            assert engine.stats()["recomputed"] - before <= 6
            assert engine.stats()["reused"] == 3 * 20 + 2 * 7 + 32

    asyncio.run(fork())


def test_new_weights_are_sampled_with_and_named(server: Server) -> None:
    tokens = prompt(14, 71)
    state = tiny("qwen3").state_dict()
    # the head's rows in reverse: the greedy token t becomes V - 1 - t
    other = {**state, "lm_head.weight": state["lm_head.weight"].flip(0)}

    async def publish() -> None:
        async with SGLangEngine(server.url) as engine:
            old = await run(engine, tokens, GREEDY)
            await engine.update_weights(other, 3)
            new = await run(engine, tokens, GREEDY)
            await engine.update_weights(state, 4)
            back = await run(engine, tokens, GREEDY)
        assert old.tokens == back.tokens == greedy("qwen3", tokens, 12)
        assert new.tokens[0] == VOCAB - 1 - old.tokens[0]
        assert (new.weight_version, back.weight_version) == (3, 4)

    asyncio.run(publish())
