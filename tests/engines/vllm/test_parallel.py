"""Tensor and data parallelism on two cores: trees are right and children stay with their parent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from http_client import Client
from models import VOCAB, greedy, prompt
from own_process import Server, together
from server import serving
from tiny_models import tokenizer
from vllm.config import ParallelConfig

from spark.serve.vllm.backend import VLLMBackend

pytestmark = pytest.mark.vllm

KINDS = {
    "tensor": {"tensor-parallel-size": 2},
    "data": {"data-parallel-size": 2, "api-server-count": 1},
}


@pytest.fixture(scope="module")
def servers(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    model, folder = models("qwen3"), tmp_path_factory.mktemp
    starts = (serving(model, folder(kind), **flags) for kind, flags in KINDS.items())
    with together(*starts) as started:
        yield dict(zip(KINDS, started, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_trees(servers: dict[str, Server], kind: str) -> None:
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

    asyncio.run(run(servers[kind].url))


@pytest.mark.parametrize(
    ("balancer", "ranks"),
    [({}, {0, 1, 2, 3}), ({"data_parallel_hybrid_lb": True}, {0, 1})],
    ids=["vllm's", "one before the servers"],
)
def test_a_tree_has_one_of_the_ranks_of_its_server(balancer: dict, ranks: set[int]) -> None:
    parallel = ParallelConfig(data_parallel_size=4, data_parallel_size_local=2, **balancer)
    model_config = Mock(max_model_len=64, hf_config=None, get_vocab_size=lambda: VOCAB)
    config = Mock(parallel_config=parallel, model_config=model_config)
    backend = VLLMBackend(Mock(vllm_config=config), tokenizer(), "m", ())
    trees = [[backend._rank(f"tree-{tree}/{leaf}") for leaf in range(3)] for tree in range(9)]
    assert all(len(set(leaves)) == 1 for leaves in trees)
    assert {leaves[0] for leaves in trees} == ranks
    # trees that come as others go spread as well
    for tree in range(9, 200):
        del backend._trees[f"tree-{tree - 9}"]
        backend._rank(f"tree-{tree}/0")
    held = Counter(backend._trees.values())
    assert set(held) == ranks and max(held.values()) - min(held.values()) <= 1
