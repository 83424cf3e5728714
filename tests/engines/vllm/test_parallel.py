"""Tensor and data parallelism on two cores: trees are right and children stay with their parent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from http_client import Client
from models import greedy, prompt
from server import serving

pytestmark = pytest.mark.vllm

KINDS = {
    "tensor": {"tensor-parallel-size": 2},
    "data": {"data-parallel-size": 2, "api-server-count": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_trees(models: Any, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    folder = tmp_path_factory.mktemp(kind)
    # at once: the server drops connections that are idle while transformers computes
    wanted = [greedy("qwen3", prompt(50 + seed, seed), 20) for seed in range(4)]

    async def run(url: str) -> None:
        async with Client(url) as client:

            async def tree(seed: int) -> None:
                body = {
                    "prompt": prompt(50 + seed, seed),
                    "max_tokens": 20,
                    "n": 6,
                    "temperature": 0,
                    "ignore_eos": True,
                    "return_token_ids": True,
                    "branching": {"policy": "entropy", "roots": 2, "entropy_threshold": 2.5},
                }
                answer = await client.good(body)
                leaves = [choice["token_ids"] for choice in answer["choices"]]
                assert leaves == [wanted[seed]] * 6
                last = answer["choices"][-1]["branch"]["node"]
                behind = {"tree": answer["branching"]["id"], "from": last}
                told = await client.good(body | {"prompt": [1, 2], "n": 1, "branching": behind})
                assert len(told["choices"][0]["token_ids"]) == 20
                assert told["branching"]["recomputed_tokens"] <= 1

            await asyncio.gather(*(tree(seed) for seed in range(4)))
            stats = (await client.get("/v1/trees"))["stats"]
            assert stats["forks"] == stats["forks_exact"] == 4 * 6
            body = {"prompt": prompt(30), "max_tokens": 15, "seed": 4, "return_token_ids": True}
            body |= {"branching": {"policy": "none"}, "n": 3}
            first, second = await client.good(body), await client.good(body)
            assert [c["token_ids"] for c in first["choices"]] == [
                c["token_ids"] for c in second["choices"]
            ]

    with serving(models("qwen3"), folder, **KINDS[kind]) as server:
        asyncio.run(run(server.url))
