"""The server of the embedded engine: the shared routes, models, health, metrics, new weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from spark.engines.local.model import check_state
from spark.serve.chat import ChatFormat
from spark.serve.limits import Limits
from spark.serve.local import LocalBackend
from spark.serve.metrics import Metrics
from spark.serve.protocol import RequestError
from spark.serve.routes import TreeRoutes, refusal
from spark.serve.trees import Trees
from spark.serve.weights import receive_state


def make_app(
    backend: LocalBackend,
    limits: Limits,
    *,
    branching: bool = True,
    chat_template: str | None = None,
    weight_updates: bool = False,
) -> FastAPI:
    """Return the application; it closes the engine when it stops."""
    registry = CollectorRegistry()
    trees = Trees(backend, limits, Metrics(registry))
    routes = TreeRoutes(trees, ChatFormat(backend.tokenizer, chat_template), branching=branching)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with backend.engine:
            watch = asyncio.create_task(trees.watch())
            yield
            watch.cancel()
            await routes.jobs.finish()

    app = FastAPI(title="Spark", lifespan=lifespan)
    app.include_router(routes.router)

    @app.exception_handler(HTTPException)
    async def no_route(http: Request, error: HTTPException) -> Response:
        told = f"{http.method} {http.url.path}: {error.detail}; /docs lists the routes"
        answer = refusal(RequestError(told, status=error.status_code))
        answer.headers.update(error.headers or {})
        return answer

    @app.get("/health")
    async def health() -> Response:
        if backend.failure is not None:
            return refusal(RequestError(f"the engine failed: {backend.failure}", status=503))
        return Response()

    @app.get("/v1/models")
    async def models() -> Response:
        card = {"id": backend.model, "object": "model", "created": 0, "owned_by": "spark"}
        card["max_model_len"] = backend.context
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/weights")
    async def weights(http: Request) -> Response:
        try:
            if not weight_updates:
                raise RequestError(
                    "weights cannot be replaced: serve with --weight_updates", status=403
                )
            state, version = await receive_state(http)
            # before any tree is dropped for them
            check_state(backend.engine.model, state)
            await trees.drop_all()
            await backend.engine.update_weights(state, version)
        except Exception as error:
            # a file that cannot be read, tensors that do not fit
            return refusal(error)
        return JSONResponse({"weight_version": version, "engine": dict(backend.stats())})

    return app
