"""New weights over HTTP, from disk and in memory: old KV is gone, the version comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest
import torch
from http_client import Client
from models import greedy, model, prompt
from own_process import Server
from safetensors.torch import save, save_file

from spark.serve.vllm.backend import VLLMBackend

pytestmark = pytest.mark.vllm

TOKENS = prompt(70, 3)


BODY = {
    "prompt": TOKENS,
    "max_tokens": 20,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
    "branching": {"policy": "none"},
}


def scaled(factor: float, tokens: list[int] = TOKENS) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return weights that differ from the model's, and how they go on greedily after `tokens`."""
    twin = model("qwen3")
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    changed = {name: t * factor if "mlp" in name else t for name, t in state.items()}
    twin.load_state_dict(changed)
    greedy_now = twin.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens)),
        max_new_tokens=20,
        do_sample=False,
    )
    twin.load_state_dict(state)
    return changed, greedy_now[0, len(tokens) :].tolist()


def test_versions(server: Server, tmp_path: Path) -> None:
    disk, disk_tokens = scaled(0.5)
    memory, memory_tokens = scaled(1.7)
    first = greedy("qwen3", TOKENS, 20)
    assert len({tuple(first), tuple(disk_tokens), tuple(memory_tokens)}) == 3
    save_file(disk, tmp_path / "new.safetensors")

    async def run() -> None:
        async with Client(server.url) as client:
            answer = await client.good(BODY)
            tree = answer["branching"]["id"]
            assert answer["branching"]["weight_version"] == 0
            assert answer["choices"][0]["token_ids"] == first

            told = {"path": str(tmp_path / "new.safetensors"), "version": 3}
            assert (await client.good(told, "/v1/weights"))["weight_version"] == 3
            answer = await client.good(BODY)
            assert answer["branching"]["weight_version"] == 3
            assert answer["choices"][0]["token_ids"] == disk_tokens
            behind = BODY | {"prompt": [], "branching": {"tree": tree, "from": 1}}
            assert (await client.ask(behind))[0] == 404, "trees of old weights are gone"

            url = f"{server.url}/v1/weights?version=4"
            async with client.session.post(url, data=save(memory)) as said:
                assert said.status == 200, await said.text()
            answer = await client.good(BODY)
            assert answer["branching"]["weight_version"] == 4
            assert answer["choices"][0]["token_ids"] == memory_tokens

            missing = told | {"path": str(tmp_path / "none.safetensors")}
            status, said = await client.ask(missing, "/v1/weights")
            assert (status, said["error"]["param"]) == (400, "path")
            async with client.session.post(url, data=b"not safetensors") as said:
                assert said.status == 400
            assert (await client.good(BODY))["choices"][0]["token_ids"] == memory_tokens

            wrong = memory | {"model.norm.weight": torch.ones(3)}
            async with client.session.post(url, data=save(wrong)) as said:
                assert said.status == 400
                assert "model.norm.weight has the shape [3]" in await said.text()
            assert (await client.good(BODY))["choices"][0]["token_ids"] == memory_tokens

            strange = disk | {"model.layers.0.mlp.strange": torch.ones(3)}
            async with client.session.post(url, data=save(strange)) as said:
                assert said.status == 500
                assert "strange" in await said.text()
            assert len((await client.good(BODY))["choices"][0]["token_ids"]) == 20
            async with client.session.post(url, data=save(memory)) as said:
                assert said.status == 200, await said.text()
            assert (await client.good(BODY))["choices"][0]["token_ids"] == memory_tokens

    try:
        asyncio.run(run())
    finally:
        asyncio.run(restore(server))


async def runs(client: Client) -> bool:
    """Return whether vLLM is at work on a request."""
    async with client.session.get(client.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = [line for line in lines if line.startswith("vllm:num_requests_running")]
    return any(float(line.rsplit(" ", 1)[1]) for line in found)


def test_ordinary_requests_in_progress_are_waited_for(server: Server) -> None:
    new, fresh = scaled(0.5)
    long = {"prompt": TOKENS, "max_tokens": 150, "temperature": 0, "ignore_eos": True}

    async def run() -> None:
        async with Client(server.url) as client:
            running = asyncio.create_task(client.good(long | {"return_token_ids": True}))
            while not await runs(client):
                assert not running.done()
            url = f"{server.url}/v1/weights?version=6"
            async with client.session.post(url, data=save(new)) as said:
                assert said.status == 200, await said.text()
            old = await running
            assert old["choices"][0]["token_ids"] == greedy("qwen3", TOKENS, 150)
            answer = await client.good(BODY)
            assert answer["choices"][0]["token_ids"] == fresh
            assert answer["branching"]["weight_version"] == 6

    try:
        asyncio.run(run())
    finally:
        asyncio.run(restore(server))


def test_requests_that_come_meanwhile_are_queued() -> None:
    """In vLLM 0.33, made up here: its `pause_generation` refuses them, the core's does not."""
    core = Mock(pause_scheduler_async=AsyncMock())
    engine = Mock(engine_core=core, resume_generation=AsyncMock())
    engine.pause_generation = AsyncMock(side_effect=AssertionError("refuses new requests"))

    async def run() -> None:
        async with VLLMBackend.paused(Mock(engine=engine)):
            core.pause_scheduler_async.assert_awaited_once_with(mode="wait", clear_cache=False)
            engine.resume_generation.assert_not_awaited()
        engine.resume_generation.assert_awaited_once()

    asyncio.run(run())


def test_weights_by_vllms_own_calls(server: Server, tmp_path: Path) -> None:
    """As trainers that know nothing of trees send them: vLLM's routes, in development mode.

    They pause the server and empty its cache, or leave both out where nothing runs, as here.
    """
    first = greedy("qwen3", TOKENS, 20)
    new, fresh = scaled(0.5)
    _, later = scaled(0.5, TOKENS + first)
    save_file(new, tmp_path / "new.safetensors")
    calls = (
        ("init_weight_transfer_engine", {"init_info": {}}),
        ("start_weight_update", {}),
        ("update_weights", {"update_info": {"folder": str(tmp_path)}}),
        ("finish_weight_update", {"weight_version": "9"}),
    )

    async def run() -> None:
        async with Client(server.url) as client:
            tree = (await client.good(BODY))["branching"]["id"]
            for route, told in calls:
                await client.good(told, f"/{route}")
            answer = await client.good(BODY)
            assert answer["choices"][0]["token_ids"] == fresh, "nothing of the old prefix cache"
            assert answer["branching"]["weight_version"] == 9
            behind = BODY | {"prompt": [], "branching": {"tree": tree, "from": 1}}
            answer = await client.good(behind)
            assert answer["choices"][0]["token_ids"] == later, "nothing of the old leaf's KV"

    try:
        asyncio.run(run())
    finally:
        asyncio.run(restore(server))


async def restore(server: Server) -> None:
    """Give the server its first weights back."""
    async with Client(server.url) as client:
        url = f"{server.url}/v1/weights?version=0"
        async with client.session.post(url, data=save(model("qwen3").state_dict())) as said:
            assert said.status == 200
