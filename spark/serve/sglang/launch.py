"""`spark serve MODEL --engine sglang`: becomes SGLang's own server, with branching switched on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from spark.serve.launch import become
from spark.serve.limits import Limits

# flags of `spark serve` that SGLang knows by another name
RENAMED = {
    **{f"--{f.name}": f"--branching-{f.name.replace('_', '-')}" for f in fields(Limits)},
    "--chat_template": "--branching-chat-template",
    "--served_model_name": "--served-model-name",
}
DEFAULTS = {"--branching": "spark", "--host": "127.0.0.1", "--port": "8000"}


def launch(argv: Sequence[str]) -> None:
    """Replace this process by SGLang's launcher; `argv`: model, SGLang's flags and ours.

    Raises ValueError when SGLang is not installed.
    """
    become("sglang", "sglang.launch_server", command_line(argv))


def command_line(argv: Sequence[str]) -> list[str]:
    """Return the arguments of SGLang's launcher for those of `spark serve`.

    Example:
        command_line(["M", "--max_leaves", "8", "--port=80"])
        # ["--model-path", "M", "--branching-max-leaves", "8", "--port=80", "--branching", "spark",
        #  "--host", "127.0.0.1"]
    """
    theirs: list[str] = []
    for at, flag in enumerate(argv):
        name, given, value = flag.partition("=")
        if at == 0 and not flag.startswith("-"):
            theirs += ["--model-path", flag]
        # SGLang takes new weights without a flag
        elif name != "--weight_updates":
            theirs.append(RENAMED.get(name, name) + given + value)
    named = {flag.partition("=")[0] for flag in theirs}
    return theirs + [
        word for name, value in DEFAULTS.items() if name not in named for word in (name, value)
    ]
