"""Entry point `vllm.endpoint_plugins`: requests with a `branching` object, in vLLM's own server.

A request without one is answered by vLLM's handler, untouched.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark.engines.vllm.options import options
from spark.engines.weights import MEMORY
from spark.serve.chat import ChatFormat
from spark.serve.limits import Limits
from spark.serve.metrics import Metrics
from spark.serve.protocol import RequestError
from spark.serve.routes import TreeRoutes, refusal
from spark.serve.trees import Trees
from spark.serve.vllm.backend import VLLMBackend
from spark.serve.vllm.weights import receive_file

ROUTES = {"/v1/completions": "completions", "/v1/chat/completions": "chat_completions"}


class SparkEndpoint:
    """What vLLM loads; `routes` is there once the engine runs."""

    name = "spark"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.routes: TreeRoutes | None = None
        self._weight_updates = False

    def attach_router(self, app: FastAPI) -> None:
        """Put a switch before vLLM's generation routes and add those of trees."""
        for route in app.routes:
            if getattr(route, "path", None) in ROUTES:
                # what has a path is a Route, which has an app
                route.app = Switch(route.app, self, ROUTES[route.path])  # type: ignore[attr-defined]
        app.add_api_route("/v1/trees", self.facts, methods=["GET"])
        app.add_api_route("/v1/trees/{tree_id}", self.delete_tree, methods=["DELETE"])
        app.add_api_route("/v1/weights", self.weights, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Build the trees of this server on vLLM's engine."""
        chosen = options(engine_client.vllm_config)
        if not chosen.on:
            return
        names = args.served_model_name or [args.model]
        backend = VLLMBackend.of(engine_client, names[0])
        backend.aliases = tuple(names[1:])
        trees = Trees(backend, Limits(**chosen.branching_limits), Metrics(REGISTRY))
        variables = getattr(args, "default_chat_template_kwargs", None)
        chat = ChatFormat(backend.tokenizer, args.chat_template, variables)
        self.routes = TreeRoutes(trees, chat)
        self._backend, self._weight_updates = backend, chosen.branching_weight_updates
        self._watch = asyncio.create_task(trees.watch())
        atexit.register(fail_if_dead, engine_client)

    async def facts(self) -> Response:
        """Say what this server is and takes."""
        return refusal(OFF) if self.routes is None else await self.routes.facts()

    async def delete_tree(self, tree_id: str) -> Response:
        """Drop a tree and its KV."""
        return refusal(OFF) if self.routes is None else await self.routes.delete_tree(tree_id)

    async def weights(self, http: Request) -> Response:
        """Load new weights: a file this server can read, or safetensors in the body.

        vLLM reloads from a folder; a body goes through one in memory (/dev/shm).
        """
        try:
            if self.routes is None or not self._weight_updates:
                raise RequestError(
                    "weights cannot be replaced: serve with --branching-weight-updates", status=403
                )
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                target = Path(folder) / "model.safetensors"
                version = await receive_file(http, target, self._backend.shapes)
                async with self._backend.paused():
                    await self.routes.trees.drop_all()
                    await self._backend.update_weights(folder, version)
        except Exception as error:
            # a file that cannot be read, tensors that do not fit
            return refusal(error)
        return JSONResponse({"weight_version": version, "engine": dict(self._backend.stats())})


def fail_if_dead(engine: Any) -> None:
    """End the process with code 1 when its engine has died: vLLM stops listening, but ends with 0.

    Whoever supervises the server would take that for a proper end. A server that is told to stop
    ends its engine, too, and well.
    """
    manager = engine.engine_core.resources.engine_manager
    if manager is not None and manager.failed_proc_name is not None:
        sys.stderr.flush()
        os._exit(1)


OFF = RequestError("this server does not branch: serve with --branching spark")


class Switch:
    """An ASGI app before one of vLLM's: it looks for `branching` in the body."""

    def __init__(self, theirs: ASGIApp, plugin: SparkEndpoint, route: str) -> None:
        self._theirs, self._plugin, self._route = theirs, plugin, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then let the one or the other answer."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        routes = self._plugin.routes
        if routes is None or not branches(bytes(body)):
            await self._theirs(scope, again, send)
            return
        response = await getattr(routes, self._route)(Request(scope, again))
        await response(scope, again, send)


def branches(body: bytes) -> bool:
    """Return whether a request's body has a `branching` object, or cannot be looked at."""
    if b'"branching"' not in body:
        return False
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        # ours says what is wrong with it
        return True
    return isinstance(record, dict) and record.get("branching") is not None
