"""Stop strings, which Spark looks for itself, end a text where vLLM's own would."""

from __future__ import annotations

import asyncio

import pytest
from http_client import Client
from models import greedy, prompt
from own_process import Server
from tiny_models import tokenizer

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("least", [0, 12])
def test_stop_strings_wait_for_the_least_number_of_tokens(server: Server, least: int) -> None:
    asked = prompt(9, 4)
    early = tokenizer().decode(greedy("qwen3", asked, 20)[3:5])

    async def run() -> None:
        async with Client(server.url) as client:
            body = {"prompt": asked, "max_tokens": 20, "temperature": 0, "stop": [early]}
            body |= {"min_tokens": least, "ignore_eos": True, "return_token_ids": True}
            (stock,) = (await client.good(body))["choices"]
            answer = await client.good(body | {"branching": {"policy": "none"}})
            assert answer["choices"][0]["token_ids"] == stock["token_ids"]
            assert len(stock["token_ids"]) > least

    asyncio.run(run())
