"""Two servers as one engine."""

from __future__ import annotations

import asyncio

import pytest
from behaviour import GREEDY
from own_process import Server
from tiny_models import greedy, prompt

from spark.engines.affinity import AffinityEngine
from spark.engines.sglang.client import SGLangEngine

pytestmark = pytest.mark.sglang


def test_prompts_keep_to_their_server(server: Server, small: Server) -> None:
    async def spread() -> None:
        engines = [SGLangEngine(server.url), SGLangEngine(small.url)]
        async with AffinityEngine(engines) as engine:
            seqs = [await engine.open(prompt(12, 80 + i)) for i in range(8)]
            kids = [(await engine.fork(seq, 1))[0] for seq in seqs]
            outs = await asyncio.gather(*(engine.sample(kid, GREEDY) for kid in kids))
            for i, out in enumerate(outs):
                assert out.tokens == greedy("qwen3", prompt(12, 80 + i), 12)
            each = [one.stats()["generated"] for one in engines]
            assert min(each) > 0 and sum(each) == engine.stats()["generated"] == 8 * 12
            again = await engine.open(prompt(12, 80))
            assert engine._places[again][0] is engine._places[seqs[0]][0]
            for seq in (*seqs, *kids, again):
                await engine.release(seq)

    asyncio.run(spread())
