"""What goes wrong over HTTP: overload, clients that leave, control calls, killed processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from http_client import Client
from own_process import Server, together
from served import served
from tiny_models import greedy, prompt

pytestmark = pytest.mark.sglang

ENTROPY = {"policy": "entropy", "roots": 2, "entropy_threshold": 3.5}


def body(length: int = 11, seed: int = 0, **fields: Any) -> dict[str, Any]:
    start = {"prompt": prompt(length, seed), "max_tokens": 24, "seed": 5, "ignore_eos": True}
    return start | {"return_token_ids": True, "branching": ENTROPY, "n": 6} | fields


async def works(server: Server) -> None:
    async with Client(server.url) as client:
        plain = await client.good(body(9, 3, temperature=0, branching={"policy": "none"}, n=1))
        assert plain["choices"][0]["token_ids"] == greedy("qwen3", prompt(9, 3), 24)


@pytest.mark.parametrize(
    ("wrong", "status", "param"),
    [
        ({"branching": {"policy": "never"}}, 400, "branching.policy"),
        ({"branching": {"width": "2"}}, 400, "branching.width"),
        ({"branching": {"tree": "tree-no", "from": 0}}, 404, "branching.tree"),
        ({"branching": [1]}, 400, "branching"),
        ({"n": 0}, 400, "n"),
        ({"n": 17}, 400, "n"),
        ({"prompt": [1, 500]}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"stop_token_ids": [1_000_000], "min_tokens": 3}, 400, "stop_token_ids"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"use_beam_search": True}, 400, "use_beam_search"),
        ({"prompt": "a" * 200_000}, 413, None),
    ],
)
def test_bad_input_is_refused_by_name(
    small: Server, wrong: dict[str, Any], status: int, param: str | None
) -> None:
    async def ask() -> tuple[int, Any]:
        async with Client(small.url) as client:
            return await client.ask(body(**wrong))

    found, answer = asyncio.run(ask())
    assert (found, answer["error"]["param"]) == (status, param), answer


def test_two_hundred_trees_are_answered_or_refused(small: Server) -> None:
    async def flood() -> list[tuple[int, Any]]:
        async with Client(small.url, reuse=False) as client:
            asked = [client.ask(body(11 + i % 9, i, max_tokens=16)) for i in range(200)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(flood())
    assert {status for status, _ in answers} <= {200, 429, 503}
    done = [answer for status, answer in answers if status == 200]
    assert done and all(len(answer["choices"]) >= 2 for answer in done)
    asyncio.run(works(small))


def test_a_client_that_leaves_stops_its_leaves(small: Server) -> None:
    async def leave() -> float:
        async with Client(small.url) as client:
            long = body(max_tokens=1500, n=8, stream=True)
            async with client.session.post(f"{small.url}/v1/completions", json=long) as answer:
                await answer.content.readline()
            for _ in range(100):
                found = await client.metrics()
                if found["spark:leaves_reserved"] == 0:
                    return found["spark:generated_tokens_total"]
                await asyncio.sleep(0.1)
            raise AssertionError("the leaves run on")

    asyncio.run(leave())
    asyncio.run(works(small))


def test_a_flush_and_a_pause_during_a_tree(small: Server) -> None:
    async def disturb() -> tuple[Any, Any]:
        async with Client(small.url) as client:
            calm = await client.good(body(13, 7))
            disturbed = asyncio.create_task(client.good(body(13, 7)))
            async with aiohttp.ClientSession(small.url) as raw:
                (await raw.post("/flush_cache")).close()
                (await raw.post("/pause_generation", json={"mode": "retract"})).close()
                await asyncio.sleep(0.3)
                (await raw.post("/flush_cache")).close()
                (await raw.post("/continue_generation", json={})).close()
            return calm, await disturbed

    calm, disturbed = asyncio.run(disturb())
    assert [c["token_ids"] for c in calm["choices"]] == [
        c["token_ids"] for c in disturbed["choices"]
    ]
    asyncio.run(works(small))


def test_idle_trees_expire(small: Server) -> None:
    async def expire() -> tuple[int, Any]:
        async with Client(small.url) as client:
            tree = (await client.good(body()))["branching"]["id"]
            while (await client.metrics())["spark:trees_kept"]:
                await asyncio.sleep(0.2)
            return await client.ask(body(branching={"tree": tree, "from": 0}, prompt=[1], n=1))

    status, answer = asyncio.run(expire())
    assert (status, answer["error"]["param"]) == (404, "branching.tree")


PROCESSES = ("scheduler", "detokenizer")


@pytest.fixture(scope="module")
def doomed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Process to be killed -> its server."""
    folder = tmp_path_factory.mktemp("doomed")
    starts = (served(models["qwen3"], folder / name) for name in PROCESSES)
    with pytest.MonkeyPatch.context() as patch:
        # SGLang would wait a minute for a dump of the GPU
        patch.setenv("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "0")
        with together(*starts) as started:
            yield dict(zip(PROCESSES, started, strict=True))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_ends_the_server(doomed: dict[str, Server], name: str) -> None:
    server = doomed[name]

    async def kill() -> None:
        pid, *_ = server.pids(name)
        async with Client(server.url) as client:
            asked = asyncio.create_task(client.ask(body(max_tokens=1500, n=8)))
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises((aiohttp.ClientError, AssertionError)):
                status, answer = await asked
                assert status == 200, answer

    asyncio.run(kill())
    assert server.process.wait(60) != 0
