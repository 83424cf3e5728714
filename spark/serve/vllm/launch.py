"""`spark serve MODEL --engine vllm`: becomes vLLM's own server, with branching switched on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

from spark.rollout.chat import APPEND_ONLY
from spark.serve.launch import become
from spark.serve.limits import Limits

LIMITS = {f"--{field.name}": field.name for field in fields(Limits)}


def launch(argv: Sequence[str]) -> None:
    """Replace this process by `vllm serve`; `argv`: model, vLLM's flags and ours.

    Raises ValueError when vLLM is not installed.
    """
    become("vllm", "vllm.entrypoints.cli.main", command_line(argv))


def command_line(argv: Sequence[str]) -> list[str]:
    """Return the arguments of `vllm` for those of `spark serve`.

    Example:
        command_line(["M", "--max_leaves", "8", "--port", "80"])
        # ["serve", "M", "--port", "80", "--branching", "spark", "--branching-limits",
        #  '{"max_leaves": 8}', "--host", "127.0.0.1"]
    """
    theirs: list[str] = []
    limits: dict[str, float] = {}
    rest = iter(argv)
    for flag in rest:
        name, given, value = flag.partition("=")
        if name in LIMITS:
            limits[LIMITS[name]] = json.loads(value if given else next(rest, "null"))
        elif name == "--weight_updates":
            theirs.append("--branching-weight-updates")
        elif name in ("--chat_template", "--chat-template"):
            template = value if given else next(rest, "")
            theirs += ["--chat-template", APPEND_ONLY if template == "append_only" else template]
        else:
            theirs.append(flag)
    if not any(flag.partition("=")[0] == "--branching" for flag in theirs):
        theirs += ["--branching", "spark"]
    if limits:
        theirs += ["--branching-limits", json.dumps(limits)]
    if not {"--host", "--uds"} & {flag.partition("=")[0] for flag in theirs}:
        # vLLM itself listens to everybody
        theirs += ["--host", "127.0.0.1"]
    return ["serve", *theirs]
