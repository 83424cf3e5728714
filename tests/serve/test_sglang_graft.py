"""Requests that branch are ours, every other one reaches SGLang byte for byte."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from spark.serve.sglang.graft import Graft

GIANT = json.dumps({"prompt": "a" * 200_000, "branching": {"policy": "none"}}).encode()


@pytest.mark.parametrize(
    ("path", "chunks", "reached"),
    [
        ("/v1/completions", [GIANT[:65536], GIANT[65536:]], "trees"),
        ("/v1/completions", [b'{"prompt": ', b'"x"}'], "engine"),
        ("/v1/chat/completions", [b'{"branching": null}'], "engine"),
        ("/generate", [b'{"branching": oops'], "trees"),
        ("/generate", [b'{"text": "\\"branching\\""}'], "engine"),
        ("/v1/trees/tree-1", [b""], "trees"),
        ("/health", [b""], "engine"),
    ],
)
def test_who_gets_a_request(path: str, chunks: list[bytes], reached: str) -> None:
    got: list[tuple[str, bytes]] = []

    def application(name: str) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            message = await receive()
            body = message["body"]
            while message["more_body"]:
                message = await receive()
                body += message["body"]
            got.append((name, body))

        return answer

    async def watch() -> None:
        pass

    async def ask() -> None:
        last = len(chunks) - 1
        messages = iter(
            {"type": "http.request", "body": chunk, "more_body": at < last}
            for at, chunk in enumerate(chunks)
        )

        async def receive() -> Any:
            return next(messages)

        graft = Graft(application("engine"), application("trees"), SimpleNamespace(watch=watch))
        await graft({"type": "http", "path": path, "method": "POST"}, receive, None)

    asyncio.run(ask())
    assert got == [(reached, b"".join(chunks))]
