"""The HTTP client in trouble: lost trees, new weights, full and foreign servers, leavers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from http_client import Client
from local_server import listening, local_server
from tiny_models import greedy, prompt, tiny

from spark.engines.affinity import AffinityEngine
from spark.engines.base import EngineError, SamplingParams
from spark.engines.http import HTTPEngine

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
UPDATES = {"weight_updates": True}


def test_a_lost_tree_is_sent_again() -> None:
    async def check() -> None:
        with local_server() as url:
            async with HTTPEngine(url) as engine, Client(url) as client:
                tokens = prompt(9)
                seq = await engine.open(tokens)
                (child,) = await engine.fork(seq, 1)
                first = await engine.sample(seq, GREEDY)
                await engine.extend(seq, [5, 6])
                await client.delete(engine._held[seq].remote.id)
                whole = [*tokens, *first.tokens, 5, 6]
                again = await engine.sample(seq, GREEDY)
                assert again.tokens == greedy("qwen3", whole, 12)
                other = await engine.sample(child, GREEDY)
                assert other.tokens == first.tokens
                stats = engine.stats()
                assert stats["prefilled"] == 9 + 2
                assert stats["recomputed"] == 9 + 12 + 9
                for live in (seq, child):
                    await engine.release(live)
                assert (await client.get("/v1/trees"))["stats"]["blocks_in_use"] == 0

    asyncio.run(check())


def test_weights_are_published(tmp_path: Path) -> None:
    model = copy.deepcopy(tiny("qwen3"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state, tokens = dict(model.state_dict()), prompt(9)
    new = model.generate(torch.tensor([tokens]), max_new_tokens=12, do_sample=False)
    want = new[0, 9:].tolist()

    async def one(engine: HTTPEngine) -> tuple[list[int], int]:
        seq = await engine.open(tokens)
        out = await engine.sample(seq, GREEDY)
        await engine.release(seq)
        return out.tokens, out.weight_version

    async def check() -> None:
        # the server trains on a copy: the tiny model is shared by all tests
        with local_server(model=copy.deepcopy(tiny("qwen3")), app=UPDATES) as url:
            async with HTTPEngine(url) as engine, Client(url) as client:
                old = greedy("qwen3", tokens, 12)
                assert old != want and await one(engine) == (old, 0)
                seq = await engine.open(tokens)
                with pytest.raises(ValueError, match="1 sequences are live"):
                    await engine.update_weights(state, 3)
                # a tree that somebody else keeps is stale afterwards
                kept = await client.good({"prompt": tokens, "branching": {"policy": "none"}})
                await engine.release(seq)
                await engine.update_weights(state, 3)
                assert await one(engine) == (want, 3)
                behind = {"tree": kept["branching"]["id"], "from": 0}
                assert (await client.ask({"prompt": [], "branching": behind}))[0] == 404
                async with HTTPEngine(url, weights=tmp_path) as near:
                    await near.update_weights(tiny("qwen3").state_dict(), 4)
                assert await one(engine) == (old, 4)
                assert not list(tmp_path.iterdir())
                for wrong in ({"nothing": torch.zeros(2)}, {next(iter(state)): torch.zeros(2)}):
                    with pytest.raises(ValueError, match="state"):
                        await engine.update_weights(wrong, 5)
                nowhere = {"path": "/nowhere", "version": 5}
                assert (await client.ask(nowhere, "/v1/weights"))[0] == 400
                assert await one(engine) == (old, 4)

    asyncio.run(check())


def test_new_weights_wait_for_requests_in_progress() -> None:
    model = copy.deepcopy(tiny("qwen3"))

    async def check() -> None:
        with local_server(model=model, app=UPDATES, step_s=0.01) as url:
            async with HTTPEngine(url) as engine, Client(url) as client:
                kept = await client.good({"prompt": prompt(9), "branching": {"policy": "none"}})
                long = {"prompt": prompt(9), "max_tokens": 240, "ignore_eos": True}
                busy = asyncio.create_task(client.ask(long))
                while (await client.metrics())["spark:trees_running"] == 0:
                    assert not busy.done()
                # what does not fit is refused before anything is dropped for it
                with pytest.raises(ValueError, match="state has 'nothing'"):
                    await engine.update_weights({"nothing": torch.zeros(2)}, 1)
                behind = {"tree": kept["branching"]["id"], "from": 0}
                more = {"prompt": [], "max_tokens": 1, "branching": behind}
                assert (await client.ask(more))[0] == 200
                async with HTTPEngine(url, patience_s=0.05) as hasty:
                    with pytest.raises(EngineError, match="requests are in progress"):
                        await hasty.update_weights(model.state_dict(), 1)
                await engine.update_weights(model.state_dict(), 1)
                assert (await busy)[0] == 200
                assert (await client.ask(more))[0] == 404

    asyncio.run(check())


def test_of_several_servers_the_one_that_refuses_weights_is_heard() -> None:
    model = copy.deepcopy(tiny("qwen3"))

    async def check() -> None:
        with local_server(model=model, app=UPDATES) as one, local_server() as other:
            async with AffinityEngine([HTTPEngine(one), HTTPEngine(other)]) as engine:
                with pytest.raises(ValueError, match=f"{other}.*--weight_updates"):
                    await engine.update_weights(model.state_dict(), 1)

    asyncio.run(check())


def test_who_leaves_a_server_that_has_gone_sees_its_own_error() -> None:
    async def check() -> None:
        with local_server() as url:
            engine = HTTPEngine(url, patience_s=0.1)
            await engine.open(prompt(9))
        with pytest.raises(KeyError, match="mine"):
            async with engine:
                raise KeyError("mine")
        assert engine._wire._session is None

    asyncio.run(check())


def test_weights_are_refused_unless_the_server_says_so() -> None:
    async def check() -> None:
        with local_server() as url:
            async with HTTPEngine(url) as engine:
                with pytest.raises(ValueError, match="--weight_updates"):
                    await engine.update_weights({}, 1)

    asyncio.run(check())


def test_a_full_server_is_waited_for() -> None:
    async def one(engine: HTTPEngine, seed: int) -> list[int]:
        seq = await engine.open(prompt(9, seed))
        out = await engine.sample(seq, GREEDY)
        await engine.release(seq)
        return out.tokens

    async def check() -> None:
        with local_server(max_running_leaves=1) as url:
            async with HTTPEngine(url) as engine:
                outs = await asyncio.gather(*(one(engine, seed) for seed in range(5)))
            assert outs == [greedy("qwen3", prompt(9, seed), 12) for seed in range(5)]
        with local_server(max_running_leaves=1, step_s=0.01) as url:
            async with HTTPEngine(url, patience_s=0.02) as hasty, Client(url) as client:
                long = {"prompt": prompt(9), "max_tokens": 240, "ignore_eos": True}
                busy = asyncio.create_task(client.ask(long))
                while (await client.metrics())["spark:leaves_reserved"] == 0:
                    assert not busy.done()
                with pytest.raises(EngineError, match="full"):
                    await hasty.open(prompt(9))
                assert (await busy)[0] == 200

    asyncio.run(check())


def test_servers_of_another_kind_are_refused() -> None:
    plain, deaf = FastAPI(), FastAPI()

    @plain.post("/v1/completions")
    async def completions() -> dict[str, object]:
        return {"choices": [{"index": 0, "text": "hello"}]}

    @deaf.get("/v1/trees")
    async def facts() -> dict[str, object]:
        return {"vocab_size": 97, "context": 256}

    deaf.include_router(plain.router)

    async def check() -> None:
        for app in (plain, deaf):
            with listening(app) as url:
                async with HTTPEngine(url) as engine:
                    with pytest.raises(ValueError, match="no Spark server"):
                        await engine.open([1, 2])
        async with HTTPEngine(url, patience_s=0.1) as gone:
            with pytest.raises(EngineError, match=rf"{url}: .*does `spark serve MODEL` run there"):
                await gone.open([1, 2])
        with pytest.raises(ValueError, match="http://"):
            HTTPEngine("localhost:8000")

    asyncio.run(check())


def test_of_a_server_that_is_not_there_is_told_while_it_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> None:
        with local_server() as url:
            pass
        async with HTTPEngine(url, patience_s=1.5) as gone:
            with pytest.raises(EngineError, match="run there"):
                await asyncio.gather(gone.open([1, 2]), gone.open([1, 2]))
        assert not caplog.records
        async with HTTPEngine(url, patience_s=8.0) as gone:
            waiting = asyncio.gather(gone.open([1, 2]), gone.open([1, 2]))
            while not caplog.records:
                assert not waiting.done()
                await asyncio.sleep(0.05)
            with pytest.raises(EngineError, match="run there"):
                await waiting
        (told,) = caplog.messages
        assert url in told and "`spark serve MODEL` run there?; trying for 8.0 s" in told

    asyncio.run(check())


def test_a_cancelled_sample_leaves_no_trace() -> None:
    async def check() -> None:
        with local_server(step_s=0.01) as url:
            async with HTTPEngine(url) as engine, Client(url) as client:
                seq = await engine.open(prompt(9))
                doomed = asyncio.create_task(engine.sample(seq, replace(GREEDY, max_tokens=240)))
                while (await client.metrics())["spark:trees_running"] == 0:
                    assert not doomed.done()
                doomed.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await doomed
                assert engine.length(seq) == 9
                out = await engine.sample(seq, GREEDY)
                assert out.tokens == greedy("qwen3", prompt(9), 12)
                await engine.release(seq)
                assert (await client.get("/v1/trees"))["stats"]["blocks_in_use"] == 0

    asyncio.run(check())


def test_a_constraint_of_this_process_is_refused() -> None:
    class Only:
        def allowed(self, generated: Sequence[int]) -> list[int]:
            return [3]

    async def check() -> None:
        with local_server() as url:
            async with HTTPEngine(url) as engine:
                seq = await engine.open(prompt(9))
                with pytest.raises(ValueError, match="Only cannot be sent"):
                    await engine.sample(seq, replace(GREEDY, constraint=Only()))
                assert (await engine.sample(seq, GREEDY)).tokens

    asyncio.run(check())


def test_an_engine_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from spark.engines.local.core import EngineCore

    async def check() -> None:
        with local_server() as url:
            async with HTTPEngine(url) as engine, Client(url) as client:
                seq = await engine.open(prompt(9))

                def broken(self: EngineCore) -> None:
                    raise MemoryError("no KV left")

                monkeypatch.setattr(EngineCore, "run_step", broken)
                for _ in range(2):
                    with pytest.raises(EngineError, match=r"engine failed.*no KV left"):
                        await engine.sample(seq, GREEDY)
                status, answer = await client.ask({"prompt": [1], "stream": True})
                assert status == 500 and "no KV left" in answer["error"]["message"]
                async with client.session.get(f"{url}/health") as health:
                    assert health.status == 503

    asyncio.run(check())
