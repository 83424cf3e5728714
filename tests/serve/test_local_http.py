"""The embedded engine's server shows the behaviour that every server must."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from http_behaviour import BEHAVIOUR, Subject, until
from http_client import Client
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


def test_idle_trees_expire() -> None:
    async def check() -> None:
        with local_server(idle_seconds=0.4) as url:
            async with Client(url) as client:
                answer = await client.good(SUBJECT.body(n=4, branching=SUBJECT.entropy))
                behind = {"tree": answer["branching"]["id"], "from": 0}
                more = SUBJECT.body(prompt=[], max_tokens=1, branching=behind)
                await until(client, lambda now: now["spark:trees_kept"] == 0)
                assert (await client.get("/v1/trees"))["stats"]["blocks_in_use"] == 0
                status, told = await client.ask(more)
                assert (status, told["error"]["param"]) == (404, "branching.tree")

    asyncio.run(check())


def test_a_kept_tree_yields_its_room_and_is_computed_again() -> None:
    async def check() -> None:
        with local_server(blocks=24) as url:
            async with Client(url) as client:
                answer = await client.good(SUBJECT.body(branching={"policy": "none"}))
                (choice,) = answer["choices"]
                tokens = [*prompt(11), *choice["token_ids"]]
                crowd = SUBJECT.body(60, 1, n=4, max_tokens=30, branching={"policy": "none"})
                assert len((await client.good(crowd))["choices"]) == 4
                behind = {"tree": answer["branching"]["id"], "from": choice["branch"]["node"]}
                more = SUBJECT.body(prompt=[1], temperature=0, branching=behind)
                answer = await client.good(more)
                want = greedy("qwen3", [*tokens, 1], 24)
                assert answer["choices"][0]["token_ids"] == want
                assert answer["branching"]["recomputed_tokens"] == len(tokens) - 1
                counted = await client.metrics()
                assert counted['spark:forks_total{path="recompute"}'] >= 1

    asyncio.run(check())


def test_what_is_no_route_is_told_as_errors_are() -> None:
    async def check() -> None:
        with local_server() as url:
            async with Client(url) as client:
                status, told = await client.ask({}, "/v1/nothing")
                assert (status, told["error"]["code"]) == (404, 404)
                assert "POST /v1/nothing" in told["error"]["message"]
                async with client.session.get(url + "/v1/completions") as answer:
                    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
                    assert (await answer.json())["error"]["type"] == "invalid_request_error"

    asyncio.run(check())


def test_a_body_that_is_no_object_is_named() -> None:
    async def check() -> None:
        with local_server() as url:
            async with Client(url) as client:
                for path in ("/v1/completions", "/v1/chat/completions"):
                    status, told = await client.ask([1], path)
                    assert (status, told["error"]["param"]) == (400, None)
                    assert told["error"]["message"] == "the body is [1]: send a JSON object"

    asyncio.run(check())


def test_a_server_without_branching_says_so() -> None:
    async def check() -> None:
        with local_server(app={"branching": False}) as url:
            async with Client(url) as client:
                status, told = await client.ask(SUBJECT.body(branching={"policy": "none"}))
                assert (status, told["error"]["param"]) == (400, "branching")
                plain = await client.good(SUBJECT.body(temperature=0, max_tokens=12))
                assert plain["choices"][0]["token_ids"] == greedy("qwen3", prompt(11), 12)

    asyncio.run(check())
