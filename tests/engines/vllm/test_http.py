"""vLLM's own server with branching: the behaviour of every server, and bad input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import pytest
from http_behaviour import BEHAVIOUR, Subject
from http_client import Client
from models import VOCAB, greedy, prompt
from own_process import Server
from server import FLAGS, blocks_in_use
from tiny_models import tokenizer
from vllm.exceptions import QueueOverflowError

from spark.serve.routes import as_request_error

pytestmark = pytest.mark.vllm


@pytest.fixture
def subject(server: Server) -> Subject:
    return Subject(
        start=lambda **limits: nullcontext(server.url),
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens), skip_special_tokens=True),
        context=int(FLAGS["max-model-len"]),
        vocab_size=VOCAB,
        recomputed=1,
        shared=True,
        alone=False,
    )


@pytest.mark.parametrize("check", BEHAVIOUR, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], subject: Subject) -> None:
    asyncio.run(check(subject))


def test_vllms_own_answers_are_untouched(server: Server) -> None:
    """Without `branching` the request never reaches Spark's routes: fields only vLLM has work."""

    async def run() -> None:
        async with Client(server.url) as client:
            body = {"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "logprobs": 4}
            answer = await client.good(body | {"echo": True, "return_token_ids": True})
            assert answer["choices"][0]["token_ids"] == greedy("qwen3", [1, 2, 3], 5)
            assert len(answer["choices"][0]["logprobs"]["top_logprobs"][-1]) >= 3
            events = await client.stream(body | {"branching": None})
            assert len(events) >= 5 and "branching" not in events[-1]
            status, told = await client.ask(b'{"prompt": [1], "branching": {"policy": ')
            assert status in (400, 422), told

    asyncio.run(run())


def test_options_that_only_vllm_has(server: Server) -> None:
    """Penalties and others work in trees; children count what they share as output."""

    async def run() -> None:
        async with Client(server.url) as client:
            body = {
                "prompt": prompt(9, 4),
                "max_tokens": 20,
                "temperature": 0,
                "return_token_ids": True,
                "repetition_penalty": 1.3,
                "presence_penalty": 0.7,
                "min_tokens": 12,
                "stop_token_ids": list(range(0, VOCAB, 5)),
                "allowed_token_ids": [token for token in range(VOCAB) if token % 3],
                "ignore_eos": True,
            }
            (plain,) = (await client.good(body))["choices"]
            tree = {"policy": "entropy", "entropy_threshold": 2.5}
            answer = await client.good(body | {"n": 5, "branching": tree})
            assert len(answer["choices"]) > 1
            assert all(c["token_ids"] == plain["token_ids"] for c in answer["choices"])
            odd = body | {"branching": {}, "logit_bias": {"x": 1}}
            assert (await client.ask(odd))[0] == 400
            # null is the default, as everywhere
            empty = dict.fromkeys(("logit_bias", "frequency_penalty", "bad_words"), None)
            assert (await client.good(body | empty | {"branching": {"policy": "none"}}))["choices"]

    asyncio.run(run())


def test_constraints_hold_in_forked_leaves(server: Server) -> None:
    tags = tokenizer()
    choices = [tags.encode(text) for text in (" look at </action>", " take a key </action>")]

    async def run() -> None:
        async with Client(server.url) as client:
            wire = {"opening": "<action>", "choices": choices}
            branching = {"policy": "entropy", "entropy_threshold": 0.2, "constraint": wire}
            body = {
                "prompt": prompt(9, 5) + tags.encode("<action>"),
                "max_tokens": 12,
                "n": 4,
                "seed": 2,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            opened = branching | {"constraint": {**wire, "before": tags.encode("<action>")}}
            answer = await client.good(body | {"branching": opened})
            seen = set()
            for choice in answer["choices"]:
                assert choice["text"].startswith((" look at </action>", " take a key </action>"))
                seen.add(choice["text"][:6])
            nodes = [node for node in answer["branching"]["nodes"] if node.get("allowed")]
            assert nodes
            for node in nodes:
                for at, ids in node["allowed"].items():
                    assert node["token_ids"][int(at)] in ids
                    assert node["log_kept_mass"][int(at)] < -0.01

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"branching": {"policy": "sprak"}}, 400, "branching.policy"),
        ({"branching": {"policy": "spark", "width": "2"}}, 400, "branching.width"),
        ({"branching": {"polcy": "spark"}}, 400, "branching.polcy"),
        ({"branching": 3}, 400, "branching"),
        ({"branching": {"tree": "tree-0", "from": 0}}, 404, "branching.tree"),
        ({"branching": {}, "n": 0}, 400, "n"),
        ({"branching": {}, "n": 17}, 400, "n"),
        ({"branching": {}, "prompt": [1, VOCAB]}, 400, "prompt"),
        ({"branching": {}, "prompt": [1, "2"]}, 400, "prompt"),
        ({"branching": {}, "prompt": []}, 400, "prompt"),
        ({"branching": {}, "max_tokens": -1}, 400, "max_tokens"),
        ({"branching": {}, "temperature": "hot"}, 400, "temperature"),
        ({"branching": {}, "beam_width": 4}, 400, "beam_width"),
        ({"branching": {}, "prompt": [1] * 600}, 400, "prompt"),
    ],
)
def test_bad_fields_are_named(server: Server, change: dict, status: int, param: str) -> None:
    async def run() -> None:
        async with Client(server.url) as client:
            found, told = await client.ask({"prompt": [1, 2, 3], "max_tokens": 4} | change)
            assert (found, told["error"]["param"]) == (status, param)
            await client.good({"prompt": [1, 2, 3], "max_tokens": 4, "branching": {}})

    asyncio.run(run())


def test_bad_places_in_a_tree(server: Server) -> None:
    async def run() -> None:
        async with Client(server.url) as client:
            body = {"prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True}
            tree = (await client.good(body | {"branching": {}}))["branching"]["id"]
            for place, param in (
                ({"from": 9}, "branching.from"),
                ({"from": 1, "fork_at": 8}, "branching.fork_at"),
                ({"from": 1, "fork_at": -1}, "branching.fork_at"),
                ({"from": 1, "fork_at": 0}, "branching.fork_at"),
                ({"from": 1, "prefix": [1, 2, 4]}, "branching.prefix"),
            ):
                more = body | {"prompt": [], "branching": {"tree": tree} | place}
                status, told = await client.ask(more)
                assert (status, told["error"]["param"]) == (400, param)
            assert await client.delete(tree) == 200
            assert await client.delete(tree) == 404
            status, _ = await client.ask(body | {"branching": {"tree": tree, "from": 0}})
            assert status == 404

    asyncio.run(run())


def test_a_leaf_goes_on_under_its_own_grammar_only(server: Server) -> None:
    async def run() -> None:
        async with Client(server.url) as client:
            body = {"prompt": prompt(9, 5), "max_tokens": 3, "temperature": 0}
            body["stop_token_ids"] = tokenizer().encode("<|end|>")
            grammar = {"structured_outputs": {"choice": ["look at the desk"]}}
            first = await client.good(body | grammar | {"branching": {}})
            place = {"tree": first["branching"]["id"], "from": 1}
            body |= {"prompt": [], "max_tokens": 40, "branching": place}
            other = body | {"structured_outputs": {"choice": ["take a key"]}}
            status, told = await client.ask(other)
            assert (status, told["error"]["param"]) == (400, "structured_outputs")
            assert "forbids the 3 sampled tokens" in told["error"]["message"]
            rest = await client.good(body | grammar)
            text = "".join(answer["choices"][0]["text"] for answer in (first, rest))
            assert text.startswith("look at the desk")
            # a turn of its own starts anew
            turn = await client.good(other | {"prompt": [7]})
            assert turn["choices"][0]["text"].startswith("take a key")

    asyncio.run(run())


def test_a_full_queue_is_told_to_come_back() -> None:
    told = as_request_error(QueueOverflowError())
    assert (told.status, told.retry_s) == (503, 1) and "is full" in str(told)


def test_giant_bodies_are_refused(server: Server) -> None:
    async def run() -> None:
        async with Client(server.url) as client:
            body = {"prompt": [1] * 200_000, "max_tokens": 1, "branching": {}}
            status, told = await client.ask(body)
            assert status == 413, told

    asyncio.run(run())


def in_use(server: Server) -> float:
    """Return the share of KV blocks in use once nothing runs; vLLM tells it with a request."""

    async def poke() -> None:
        async with Client(server.url) as client:
            await client.good({"prompt": [1], "max_tokens": 1})

    shares = []
    for _ in range(6):
        asyncio.run(poke())
        time.sleep(0.2)
        shares.append(blocks_in_use(server))
    return min(shares)


def test_a_client_that_leaves_stops_its_leaves(server: Server) -> None:
    held = in_use(server)

    async def run() -> float:
        async with Client(server.url) as client:
            before = (await client.metrics())["spark:generated_tokens_total"]
            body = {
                "prompt": prompt(20, 7),
                "max_tokens": 480,
                "n": 12,
                "ignore_eos": True,
                "stream": True,
                "branching": {"policy": "entropy", "roots": 4, "entropy_threshold": 3.5},
            }
            async with client.session.post(server.url + "/v1/completions", json=body) as answer:
                for _ in range(20):
                    await answer.content.readline()
                answer.close()
            first = await client.metrics()
            for _ in range(60):
                if first["spark:trees_running"] == 0:
                    break
                await asyncio.sleep(1)
                first = await client.metrics()
            await asyncio.sleep(2)
            second = await client.metrics()
            assert first["spark:generated_tokens_total"] == second["spark:generated_tokens_total"]
            assert second["spark:trees_running"] == second["spark:leaves_reserved"] == 0
            return second["spark:generated_tokens_total"] - before

    assert asyncio.run(run()) < 12 * 480 / 2
    assert in_use(server) <= held, "the blocks of a tree that nobody kept return"


def test_200_trees_at_once_are_answered_or_refused(server: Server) -> None:
    async def run() -> None:
        async with Client(server.url, reuse=False) as client:
            tree = {"policy": "entropy", "roots": 2, "entropy_threshold": 3.0, "keep": False}

            async def one(seed: int) -> int:
                body = {
                    "prompt": prompt(60, seed % 5),
                    "max_tokens": 30,
                    "n": 4,
                    "seed": seed,
                    "ignore_eos": True,
                    "return_token_ids": True,
                    "branching": tree,
                }
                status, answer = await client.ask(body)
                if status == 200:
                    assert [len(c["token_ids"]) for c in answer["choices"]] == [30] * 4
                else:
                    assert answer["error"]["param"] is None
                return status

            found = await asyncio.gather(*(one(seed) for seed in range(200)))
            assert set(found) <= {200, 429, 503} and found.count(200) >= 16
            metrics = await client.metrics()
            assert metrics["spark:trees_running"] == metrics["spark:leaves_reserved"] == 0

    held = in_use(server)
    asyncio.run(run())
    assert in_use(server) <= held
