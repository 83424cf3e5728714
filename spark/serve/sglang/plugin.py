"""The entry point of SGLang's plugins: the engine's hooks, and the tree routes in its server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Any

from spark.engines.sglang import plugin
from spark.engines.sglang.hooks import Hook
from spark.serve.limits import Limits


def register() -> None:
    """Called by SGLang in every process it starts."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.server_args.ServerArgs.add_cli_args", add_flags, HookType.AFTER
    )
    plugin.register(server_hooks)


def add_flags(result: Any, parser: ArgumentParser) -> None:
    """Add the limits on trees to SGLang's parser, e.g. --branching-max-leaves."""
    for field in fields(Limits):
        name = f"--branching-{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default)
    parser.add_argument("--branching-chat-template", default=None)


def server_hooks(args: Namespace) -> list[Hook]:
    """Return the hook that brings in the tree routes. Exits on bad limits."""
    try:
        limits = Limits(**{f.name: getattr(args, f"branching_{f.name}") for f in fields(Limits)})
    except ValueError as error:
        raise SystemExit(f"spark: branching-{error}") from None
    template = args.branching_chat_template

    def on_state(result: Any, state: Any) -> None:
        graft(state.tokenizer_manager, state.scheduler_info, limits, template)

    return [Hook("sglang.srt.entrypoints.http_server.set_global_state", "after", on_state)]


def graft(manager: Any, scheduler: dict[str, Any], limits: Limits, template: str | None) -> None:
    """Put the tree routes in front of SGLang's own."""
    from fastapi import FastAPI
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel, auth_level
    from starlette.responses import Response

    from spark.serve.chat import ChatFormat
    from spark.serve.metrics import Metrics
    from spark.serve.routes import TreeRoutes
    from spark.serve.sglang.backend import SGLangBackend
    from spark.serve.sglang.graft import Graft
    from spark.serve.sglang.native import NativeRoutes
    from spark.serve.sglang.weights import weight_route
    from spark.serve.trees import Trees

    registry = CollectorRegistry()
    backend = SGLangBackend(manager, scheduler)
    trees = Trees(backend, limits, Metrics(registry))
    routes = TreeRoutes(trees, ChatFormat(manager.tokenizer, template))
    ours = FastAPI()
    ours.include_router(routes.router)
    ours.include_router(NativeRoutes(routes).router)
    app.add_middleware(Graft, trees_app=ours, trees=trees)
    # who may use it is what SGLang says of its own routes for weights
    weights = auth_level(AuthLevel.ADMIN_OPTIONAL)(weight_route(backend))
    app.add_api_route("/v1/weights", weights, methods=["POST"])
    if not manager.server_args.enable_metrics:
        # with --enable-metrics SGLang's own /metrics shows ours too
        app.add_api_route(
            "/metrics",
            lambda: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST),
        )
