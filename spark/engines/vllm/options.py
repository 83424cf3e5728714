"""The switch: `--branching spark` on the command line, the same names in `additional_config`."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints


@dataclass(kw_only=True, slots=True, frozen=True)
class Options:
    """What the plugin is told. They travel in vLLM's `additional_config` to every process.

    Example:
        LLM(model, additional_config={"branching": "spark", "branching_sampler": "stock"})
    """

    branching: Literal["none", "spark"] = "none"
    """spark: fork, score and sample in this engine; none: vLLM as it is."""
    branching_sampler: Literal["spark", "stock"] = "spark"
    """Who draws the tokens: Spark's one-read sampler, or vLLM's own with the scores beside it."""
    branching_hold_seconds: float = 60.0
    """How long the KV of a finished parent waits for children, unless its tree is released."""
    branching_limits: dict[str, Any] = field(default_factory=dict)
    """What a server takes on, as JSON: the fields of `spark.serve.limits.Limits`."""
    branching_weight_updates: bool = False
    """Let clients of a server replace the weights (POST /v1/weights), as the trainer does."""

    def __post_init__(self) -> None:
        for name in ("branching", "branching_sampler"):
            if getattr(self, name) not in choices(name):
                known = ", ".join(choices(name))
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {known}")
        if not self.branching_hold_seconds >= 0:
            raise ValueError(f"branching_hold_seconds={self.branching_hold_seconds} must be >= 0")

    @property
    def on(self) -> bool:
        """Return whether this engine branches."""
        return self.branching != "none"


NAMES = tuple(each.name for each in fields(Options))


@functools.cache
def choices(name: str) -> tuple[str, ...]:
    """Return the values that field `name` can have; kept, as every request asks."""
    return get_args(get_type_hints(Options)[name])


def options(config: Any) -> Options:
    """Return the options in a vLLM config's `additional_config`.

    Raises ValueError for a value that makes no sense or an unknown `branching...` key.
    """
    given = getattr(config, "additional_config", None) or {}
    if not isinstance(given, Mapping):
        return Options()
    ours = {name: value for name, value in given.items() if str(name).startswith("branching")}
    if unknown := ours.keys() - set(NAMES):
        raise ValueError(
            f"additional_config[{min(unknown)!r}] is unknown; known: {', '.join(sorted(NAMES))}"
        )
    return Options(**ours)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--branching` and its options to vLLM's command line."""
    group = parser.add_argument_group("spark", "branching generations (spark-branching)")
    usual = Options()
    for name in NAMES:
        default = getattr(usual, name)
        how: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            how = {"action": "store_true"}
        elif isinstance(default, dict):
            how = {"type": json.loads}
        elif isinstance(default, str):
            how = {"choices": choices(name)}
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, default=default, **how)


def from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags add to `additional_config`; empty where branching is off."""
    given = {name: getattr(args, name) for name in NAMES if hasattr(args, name)}
    chosen = Options(**given)
    return asdict(chosen) if chosen.on else {}
