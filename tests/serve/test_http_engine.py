"""The HTTP client obeys the engine protocol, against the embedded engine's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from behaviour import BEHAVIOUR, Subject
from local_server import local_server
from tiny_models import SIZES, VOCAB, greedy, prompt, tokenizer

from spark.engines.base import Engine
from spark.engines.http import HTTPEngine

HERE_ONLY = {
    "constraints_limit_and_are_recorded": "its constraint is a Python object of the test",
    "a_bad_constraint_fails_alone": "its constraint is a Python object of the test",
    "cancelling_leaves_the_engine_sane": "needs tokens while they are sampled",
}
"""Checks that look into the process; what the client does there is tested below."""


@asynccontextmanager
async def start() -> AsyncIterator[Engine]:
    with local_server(blocks=128) as url:
        async with HTTPEngine(url) as engine:
            yield engine


SUBJECT = Subject(
    start=start,
    prompt=prompt,
    greedy=lambda tokens, new: greedy("qwen3", tokens, new),
    text=lambda tokens: tokenizer().decode(list(tokens)),
    context=int(SIZES["max_position_embeddings"]),
    block_size=8,
    vocab_size=VOCAB,
)
CHECKS = [check for check in BEHAVIOUR if check.__name__ not in HERE_ONLY]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]]) -> None:
    asyncio.run(check(SUBJECT))
