"""How vLLM's own server with branching ends: its engine dies, or it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from http_client import Client
from models import prompt
from own_process import Server, together
from server import serving

pytestmark = pytest.mark.vllm

LONG = {"max-model-len": 2048}
"""So that a server on a busy machine is still at it when it is seen to have begun."""


def long_answers(server: Server, first: Callable[[], None]) -> list[str]:
    """Return what 8 requests of 8 leaves are told; `first` is called at the first token of any."""
    begun: list[int] = []

    async def one(client: Client, seed: int) -> str:
        body = {"prompt": prompt(20, seed), "max_tokens": 1900, "n": 8, "ignore_eos": True}
        body |= {"stream": True, "branching": {"roots": 8}}
        said, dropped = b"", False
        try:
            async with client.session.post(server.url + "/v1/completions", json=body) as answer:
                while line := await asyncio.wait_for(answer.content.readline(), 60):
                    if not begun:
                        begun.append(seed)
                        first()
                    said += line
        except aiohttp.ClientError:
            # vLLM closes its sockets as it stops
            dropped = True
        assert dropped or "the engine failed" in said.decode()
        return said.decode()

    async def run() -> list[str]:
        async with Client(server.url) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(8)))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def doomed(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """One server for each test."""
    folders = [tmp_path_factory.mktemp(name) for name in ("killed", "stopped")]
    with together(*(serving(models("qwen3"), folder, **LONG) for folder in folders)) as started:
        yield started


def test_a_dead_engine_is_told_and_ends_the_server(doomed: list[Server]) -> None:
    """The engine core is killed in the middle of a generation: every answer under way says so."""
    server = doomed[0]
    core = server.pids("EngineCore")
    assert len(core) == 1
    told = long_answers(server, lambda: os.kill(core[0], signal.SIGKILL))
    assert not any('"finish_reason":"length"' in said for said in told)
    assert server.process.wait(60) == 1
    assert "EngineDeadError" in server.log.read_text()


def test_a_server_that_is_stopped_says_so_and_ends_well(doomed: list[Server]) -> None:
    server = doomed[1]
    long_answers(server, server.process.terminate)
    assert server.process.wait(60) == 0
