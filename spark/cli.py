"""The command line: `spark COMMAND ...`. Each command lives in one file of `spark/commands/`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from spark import __version__
from spark.registry import Registry

SUMMARIES = {
    "train": "improve a policy by reinforcement learning: spark train RECIPE [--field value]",
    "sft": "train a cold start on expert episodes: spark sft RECIPE [--field value]",
    "rollout": "roll out trees and write trees.jsonl: spark rollout RECIPE [--policy PATH]",
    "eval": "measure success on fixed tasks: spark eval RECIPE --policy PATH --split L0",
    "view": "draw a run: spark view RUN [--terminal]",
    "serve": "answer OpenAI requests with trees: spark serve MODEL [--engine local|vllm|sglang]",
    "env": "check an environment and measure its forks: spark env check NAME or module:Source",
    "doctor": "say what is installed, what runs where, and why",
}
COMMANDS = Registry("command", {name: f"spark.commands.{name}:main" for name in SUMMARIES})

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 = done, 2 = the user's input was wrong (one line on stderr says what), 1 = the run failed,
    130 = interrupted. SPARK_TRACEBACK=1 shows where an error was raised.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:
        # module:attribute may name a file of the folder that one is in
        sys.path.append("")
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"spark {__version__}")
        return 0
    return guarded(lambda: COMMANDS[args[0]](args[1:]))


def guarded(command: Callable[[], object]) -> int:
    """Run `command`; turn the errors a user can cause into one line and an exit code."""
    try:
        command()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return FAILURE
        return stop.code or 0
    except KeyboardInterrupt as stop:
        print(f"spark: interrupted. {stop}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output (head, less) has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("SPARK_TRACEBACK"):
            raise
        print(f"spark: error: {one_line(error)}", file=sys.stderr)
        return USAGE_ERROR if isinstance(error, ValueError | FileNotFoundError) else FAILURE
    return 0


def one_line(error: BaseException) -> str:
    """Return the error's message on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def overview() -> str:
    """Return the help text of `spark`."""
    lines = [f"  {name:<8} {summary}" for name, summary in SUMMARIES.items()]
    tail = (
        "spark COMMAND --help lists a command's fields; SPARK_TRACEBACK=1 shows where an error was "
        "raised."
    )
    return "\n".join(["usage: spark COMMAND ...", "", *lines, "", tail])
