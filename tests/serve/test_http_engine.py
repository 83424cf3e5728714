"""The HTTP client obeys the engine protocol, against the embedded engine's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from behaviour import REMOTE, Subject
from local_server import local_server
from tiny_models import SIZES, VOCAB, greedy, prompt, tokenizer

from spark.engines.base import Engine
from spark.engines.http import HTTPEngine


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


@pytest.mark.parametrize("check", REMOTE, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]]) -> None:
    asyncio.run(check(SUBJECT))
