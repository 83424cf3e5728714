"""SGLang's own server with `--branching spark`: the behaviour that every server must show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
from http_behaviour import BEHAVIOUR, Subject
from http_client import Client
from offline import CONTEXT
from own_process import Server
from tiny_models import VOCAB, greedy, prompt, tokenizer

pytestmark = pytest.mark.sglang
NATIVE = {
    "input_ids": prompt(15, 50),
    "sampling_params": {"max_new_tokens": 20, "temperature": 0, "n": 4, "ignore_eos": True},
    "branching": {"policy": "entropy", "entropy_threshold": 3.5},
}


@pytest.mark.parametrize("check", BEHAVIOUR, ids=lambda check: check.__name__)
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
        alone=False,
    )
    asyncio.run(check(subject))


def test_native_generate_answers_with_a_tree(server: Server) -> None:
    async def ask() -> tuple[Any, Any, tuple[int, Any]]:
        async with Client(server.url) as client:
            tree = await client.good(NATIVE, "/generate")
            params = NATIVE["sampling_params"] | {"n": 1}
            plain = {"input_ids": NATIVE["input_ids"], "sampling_params": params}
            stock = await client.good(plain, "/generate")
            wrong = plain | {"branching": {"width": 1}, "return_logprob": True}
            return tree, stock, await client.ask(wrong, "/generate")

    tree, stock, (status, error) = asyncio.run(ask())
    want = greedy("qwen3", NATIVE["input_ids"], 20)
    assert [leaf["output_ids"] for leaf in tree["outputs"]] == [want] * len(tree["outputs"])
    assert tree["branching"]["id"] and stock["output_ids"] == want
    assert "branching" not in stock
    assert (status, error["error"]["param"]) == (400, "branching.width")


def test_native_generate_streams_the_leaves(server: Server) -> None:
    async def ask() -> tuple[Any, list[Any], tuple[int, Any]]:
        async with Client(server.url) as client:
            whole = await client.good(NATIVE, "/generate")
            events = await client.stream(NATIVE, "/generate")
            wrong = NATIVE | {"stream": True, "branching": {"width": 1}}
            return whole, events, await client.ask(wrong, "/generate")

    whole, (*steps, last), (status, error) = asyncio.run(ask())
    assert len(whole["outputs"]) == len(last["branching"]["leaves"]) > 1
    assert last["usage"] == whole["usage"]
    leaves: dict[int, list[Any]] = {}
    for step in steps:
        leaves.setdefault(step.pop("index"), []).append(step)
    for index, leaf in enumerate(whole["outputs"]):
        *grown, end = leaves[index]
        assert len(grown) > 1 and all(step["meta_info"]["finish_reason"] is None for step in grown)
        for before, after in pairwise(leaves[index]):
            assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        for name in ("text", "output_ids"):
            assert end[name] == leaf[name]
        for name in ("finish_reason", "completion_tokens"):
            assert end["meta_info"][name] == leaf["meta_info"][name]
    assert (status, error["error"]["param"]) == (400, "branching.width")
