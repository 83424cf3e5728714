"""The embedded engine's server shows the behaviour that every server must."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from http_behaviour import BEHAVIOUR, Subject
from local_server import local_server
from tiny_models import SIZES, VOCAB, greedy, prompt, tokenizer


def text(tokens: Any) -> str:
    return tokenizer().decode(list(tokens), skip_special_tokens=True)


SUBJECT = Subject(
    start=lambda **limits: local_server(app={"chat_template": "append_only"}, **limits),
    prompt=prompt,
    greedy=lambda tokens, new: greedy("qwen3", tokens, new),
    text=text,
    context=int(SIZES["max_position_embeddings"]),
    vocab_size=VOCAB,
)


@pytest.mark.parametrize("check", BEHAVIOUR, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]]) -> None:
    asyncio.run(check(SUBJECT))
