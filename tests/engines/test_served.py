"""The client's books, against a server that only counts."""

from __future__ import annotations

import asyncio
from typing import Any

from spark.engines.base import SamplingParams
from spark.engines.served import ServedEngine
from spark.engines.wire import Refused


class Counting:
    """Stands in for a server: remembers its trees and answers a moment later."""

    url = "counting"

    def __init__(self) -> None:
        self.trees: set[str] = set()
        self.begun = 0

    async def facts(self) -> dict[str, int]:
        return {"context": 1000, "vocab_size": 100}

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        tree = body["branching"].get("tree")
        if tree is None:
            self.begun += 1
            tree = f"tree-{self.begun}"
            self.trees.add(tree)
        elif tree not in self.trees:
            raise Refused("the tree is gone", "branching.tree")
        await asyncio.sleep(0)
        answer = {
            "id": tree,
            "nodes": [{"id": 1, "token_ids": [5], "stop": "stop"}],
            "engine": {},
            "prompt_tokens": len(body["prompt"]),
            "recomputed_tokens": 0,
            "weight_version": 7,
        }
        return {"branching": answer}

    async def drop(self, tree: str) -> dict[str, Any]:
        self.trees.discard(tree)
        return {}

    async def close(self) -> None:
        pass


def test_what_is_sent_again_meanwhile_does_not_change_what_was_prefilled() -> None:
    async def check() -> None:
        server: Any = Counting()
        engine = ServedEngine(server)
        params = SamplingParams(max_tokens=4)
        first, second = await engine.fork(await engine.open([1] * 100), 2)
        server.trees.clear()
        await asyncio.gather(
            engine.open([3] * 500), engine.sample(first, params), engine.sample(second, params)
        )
        assert engine.stats()["prefilled"] == 100 + 500
        assert engine.stats()["recomputed"] == 200

    asyncio.run(check())
