"""The embedded engine passes the behaviour every engine must show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from behaviour import BEHAVIOUR, Subject
from tiny_models import SIZES, VOCAB, greedy, prompt, tiny, tokenizer

from spark import LocalEngine


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
@pytest.mark.parametrize("check", BEHAVIOUR, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], family: str) -> None:
    subject = Subject(
        start=lambda: LocalEngine(
            tiny(family), num_blocks=128, block_size=8, tokenizer=tokenizer(), max_batched_tokens=64
        ),
        prompt=prompt,
        greedy=lambda tokens, new: greedy(family, tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens)),
        context=int(SIZES["max_position_embeddings"]),
        block_size=8,
        vocab_size=VOCAB,
    )
    asyncio.run(check(subject))
