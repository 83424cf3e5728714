"""The embedded engine's server, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from tiny_models import tiny, tokenizer

from spark import LocalEngine
from spark.serve.app import make_app
from spark.serve.limits import Limits
from spark.serve.local import LocalBackend
from spark.serve.server import bind


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port; its loop is another one than the test's."""
    listener, url = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    run = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
    )
    run.start()
    while not server.started:
        assert run.is_alive()
        time.sleep(0.005)
    try:
        yield url
    finally:
        server.should_exit = True
        run.join(30)
        assert not run.is_alive()


def slowly(step: Callable[[], None], seconds: float) -> None:
    """Take `step` after `seconds`."""
    time.sleep(seconds)
    step()


@contextmanager
def local_server(
    *,
    model: Any = None,
    blocks: int = 512,
    step_s: float = 0.0,
    app: dict[str, Any] | None = None,
    **limits: Any,
) -> Iterator[str]:
    """Serve a tiny random model; with `step_s` a token takes at least so many seconds."""
    model = model or tiny("qwen3")
    engine = LocalEngine(model, num_blocks=blocks, block_size=8, tokenizer=tokenizer())
    if step_s:
        step = engine._core.run_step
        # this engine's only, hence in the place of its class's method
        engine._core.run_step = partial(slowly, step, step_s)
    backend = LocalBackend(engine, tokenizer(), "tiny")
    with listening(make_app(backend, Limits(**limits), **app or {})) as url:
        yield url
