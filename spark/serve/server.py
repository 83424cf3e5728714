"""Loads a model into the embedded engine and listens."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import uvicorn
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spark.engines.local import LocalEngine
from spark.engines.local.model import pick_device
from spark.recipes.policy import resolve
from spark.rollout.chat import template_source
from spark.serve.app import make_app
from spark.serve.local import LocalBackend

if TYPE_CHECKING:
    from spark.commands.serve import ServeOptions


def run(options: ServeOptions) -> None:
    """Serve until interrupted. Raises OSError when the address cannot be had."""
    # mistakes are told before a model is loaded
    template = template_source(options.chat_template)
    device = pick_device(options.device)
    listener, address = bind(options.host, options.port)
    model, tokenizer = load(options, device)
    engine = LocalEngine(
        model,
        num_blocks=options.kv_blocks,
        block_size=options.block_size,
        max_batched_tokens=options.max_batched_tokens,
        tokenizer=tokenizer,
    )
    app = make_app(
        LocalBackend(engine, tokenizer, options.served_model_name or options.model),
        options.limits,
        branching=options.branching == "spark",
        chat_template=template,
        weight_updates=options.weight_updates,
    )
    # clients drop idle connections themselves; one that we drop may carry a request just then
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=120)
    Server(config, address).run(sockets=[listener])


def load(options: ServeOptions, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model, on `device`, and tokenizer. Raises ValueError when they cannot be loaded."""
    path, dtype = resolve(options.model), options.dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"model={options.model!r} cannot be loaded ({error}); give a folder that "
            "save_pretrained wrote, a committed checkpoint, or a model's name"
        ) from error
    return model.to(device).eval(), tokenizer


class Server(uvicorn.Server):
    """Says where it listens, once it does, and what it waits for before it ends."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen. Raises OSError when another has begun to on the same port."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise OSError(error.errno, f"{error.strerror}: {self._address}") from None
        print(f"listening on {self._address}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests in progress end."""
        if count := len(self.server_state.tasks):
            told = f"spark: waiting for {count} requests in progress; Ctrl-C ends them at once"
            print(told, file=sys.stderr, flush=True)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at a second interrupt hang up first, so that all requests are stopped in order."""
        if self.should_exit and sig == signal.SIGINT and self.server_state.connections:
            self._loop.call_soon_threadsafe(self._hang_up)
        else:
            super().handle_exit(sig, frame)

    def _hang_up(self) -> None:
        # it warns of what is still being written to those connections
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def bind(host: str, port: int) -> tuple[socket.socket, str]:
    """Return a bound socket and its URL.

    Raises ValueError for a port that there is not, OSError naming both where it cannot be had.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: give one in [0, 65535], 0 = any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: host={host} port={port}") from None
    name = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{name}:{listener.getsockname()[1]}"
