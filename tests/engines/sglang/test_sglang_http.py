"""SGLang's own server with `--branching spark`: the behaviour that every server must show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest
from http_behaviour import BEHAVIOUR, Subject
from http_client import Client
from offline import CONTEXT
from served import Server
from tiny_models import VOCAB, greedy, prompt, tokenizer

pytestmark = pytest.mark.sglang


# bodies that are not ours SGLang refuses in its own words
CHECKS = [check for check in BEHAVIOUR if check.__name__ != "bad_bodies_are_refused"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], server: Server) -> None:
    subject = Subject(
        # the session's server has small limits for all of them
        start=lambda **limits: nullcontext(server.url),
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens), skip_special_tokens=True),
        context=CONTEXT - 2,
        vocab_size=VOCAB,
        recomputed=1,
        shared=True,
    )
    asyncio.run(check(subject))


def test_native_generate_answers_with_a_tree(server: Server) -> None:
    tokens = prompt(15, 50)

    async def ask() -> tuple[Any, Any, tuple[int, Any]]:
        async with Client(server.url) as client:
            body = {
                "input_ids": tokens,
                "sampling_params": {"max_new_tokens": 20, "temperature": 0, "n": 4},
                "branching": {"policy": "entropy", "entropy_threshold": 3.5},
            }
            body["sampling_params"]["ignore_eos"] = True
            tree = await client.good(body, "/generate")
            del body["branching"], body["sampling_params"]["n"]
            stock = await client.good(body, "/generate")
            bad = await client.ask(
                body | {"branching": {"width": 1}, "return_logprob": True}, "/generate"
            )
            return tree, stock, bad

    tree, stock, (status, error) = asyncio.run(ask())
    want = greedy("qwen3", tokens, 20)
    assert [leaf["output_ids"] for leaf in tree["outputs"]] == [want] * len(tree["outputs"])
    assert tree["branching"]["id"] and stock["output_ids"] == want
    assert "branching" not in stock
    assert (status, error["error"]["param"]) == (400, "branching.width")
