"""The `--branching` options, and how they reach the processes that SGLang starts."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "SPARK_SGLANG"
CHOICES = ("none", "spark")
# flags of SGLang -> the only value that the hooks are made for
REFUSED = {
    "incremental_streaming_output": False,
    "tokenizer_worker_num": 1,
    "speculative_algorithm": None,
    "disaggregation_mode": "null",
    "disable_radix_cache": False,
    "skip_tokenizer_init": False,
    "pp_size": 1,
    "dcp_size": 1,
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Options:
    """What the launcher was asked for."""

    branching: str = "none"
    """"spark" = fork inside the engine; "none" = SGLang untouched."""
    sampler: str = "spark"
    """"spark" = the `score` op samples and scores in one read; "stock" = SGLang's own sampler."""

    @property
    def active(self) -> bool:
        """Whether anything of SGLang changes."""
        return self.branching == "spark"

    def export(self) -> None:
        """Let the processes started from here on find these options."""
        os.environ[VARIABLE] = json.dumps(asdict(self))


def current() -> Options:
    """Return the options of this process: those its launcher exported, else the defaults."""
    return Options(**json.loads(os.environ.get(VARIABLE, "{}")))


def add_flags(result: Any, parser: ArgumentParser) -> None:
    """Add the flags to SGLang's parser."""
    parser.add_argument(
        "--branching",
        choices=CHOICES,
        default="none",
        help="spark: fork sequences inside the engine and score every token; none: stock SGLang",
    )


def from_flags(args: Namespace) -> Options:
    """Take the options out of parsed flags; `args` is left with what SGLang knows.

    Raises ValueError where flags do not go together.
    """
    chosen, named = args.branching, args.sampling_backend
    del args.branching
    if chosen not in CHOICES:
        raise ValueError(f"branching={chosen!r} must be one of {', '.join(CHOICES)}")
    if named == "spark":
        # what the stock sampler falls back on is SGLang's choice again
        args.sampling_backend = None
    if chosen == "none":
        if named == "spark":
            raise ValueError("--sampling-backend spark needs --branching spark")
        return Options()
    for name, value in REFUSED.items():
        if getattr(args, name, value) != value:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} does not go with --branching spark: leave it out")
    return Options(branching=chosen, sampler="spark" if named in (None, "spark") else "stock")
