"""`spark serve MODEL`: OpenAI's routes with trees, on the engine of your choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from spark.commands.arguments import parse, quiet_libraries
from spark.registry import Registry
from spark.serve.limits import Limits

LAUNCHERS = Registry(
    "engine",
    {
        "local": "spark.commands.serve:serve_local",
        "vllm": "spark.serve.vllm:launch",
        "sglang": "spark.serve.sglang:launch",
    },
)
"""Each takes the arguments after `spark serve`, without --engine."""


@dataclass(kw_only=True, slots=True)
class ServeOptions:
    """Serve a model with the embedded engine. `--engine vllm` and `--engine sglang` run that
    engine's own server, with all of its flags, and the same branching."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder, model name or committed checkpoint."""
    engine: Literal["local", "vllm", "sglang"] = "local"
    """Where the model runs."""
    branching: Literal["spark", "none"] = "spark"
    """spark: requests may branch; none: a plain server, which refuses `branching`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 = all of this machine's."""
    port: int = 8000
    """0 = any free one, which is printed."""
    served_model_name: str | None = None
    """Name that clients use; None = `model`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and KV cache; auto = as the model is stored."""
    device: str | None = None
    """Where the model is put, e.g. cuda; None = on a GPU if there is one."""
    kv_blocks: int = 8192
    """Blocks of the KV cache."""
    block_size: int = 16
    """Tokens of a block."""
    max_batched_tokens: int = 2048
    """Tokens computed in one step at most; longer prompts are split."""
    chat_template: str | None = None
    """None = the tokenizer's own, "append_only" = ChatML without rewriting, or a file."""
    weight_updates: bool = False
    """Let clients replace the weights (POST /v1/weights), as the trainer does."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    rest, engine = list(argv), "local"
    for at, flag in enumerate(rest):
        name, _, value = flag.partition("=")
        if name == "--engine":
            engine = value or "".join(rest[at + 1 : at + 2])
            break
    if engine == "local":
        serve_local(rest)
        return
    del rest[at : at + (1 if value else 2)]
    LAUNCHERS[engine](rest)


def serve_local(argv: Sequence[str]) -> None:
    """Serve the embedded engine until interrupted."""
    options = parse(ServeOptions, argv, prog="spark serve")
    quiet_libraries()
    from spark.serve.server import run

    run(options)
