"""The tree routes inside an engine's own server, which keeps every request that does not branch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from spark.serve.trees import Trees

Message = MutableMapping[str, Any]
SHARED_PATHS = ("/v1/completions", "/v1/chat/completions", "/generate")
TREE_PATHS = "/v1/trees"


class Graft:
    """ASGI middleware between an engine's application and the application `trees_app`.

    A request on a shared path is ours when its body has a `branching` object; every other request
    reaches the engine byte for byte.
    """

    def __init__(self, app: ASGIApp, trees_app: ASGIApp, trees: Trees) -> None:
        self._app, self._trees_app, self._trees = app, trees_app, trees
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request to whom it is for."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith((*SHARED_PATHS, TREE_PATHS)):
            await self._app(scope, receive, send)
            return
        if self._watch is None:
            self._watch = asyncio.create_task(self._trees.watch())
        if path.startswith(TREE_PATHS):
            await self._trees_app(scope, receive, send)
            return
        body, again = await self._read(receive)
        ours = scope["method"] == "POST" and path in SHARED_PATHS and branches(body)
        await (self._trees_app if ours else self._app)(scope, again, send)

    async def _read(self, receive: Receive) -> tuple[bytes, Receive]:
        """Return the body, and a way to read it again."""
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        pending = iter(messages)

        async def again() -> Message:
            message = next(pending, None)
            return await receive() if message is None else message

        return b"".join(message.get("body", b"") for message in messages), again


def branches(body: bytes) -> bool:
    """Return whether a request's body has a `branching` object that asks for something."""
    # most requests have none: do not parse them twice
    if b'"branching"' not in body:
        return False
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        # ours to refuse
        return True
    return isinstance(record, dict) and record.get("branching") is not None
