"""The switch: `--branching spark` on the command line, the same names in `additional_config`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
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

    def __post_init__(self) -> None:
        hints = get_type_hints(Options)
        for name in ("branching", "branching_sampler"):
            if getattr(self, name) not in get_args(hints[name]):
                known = ", ".join(get_args(hints[name]))
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {known}")
        if not self.branching_hold_seconds >= 0:
            raise ValueError(f"branching_hold_seconds={self.branching_hold_seconds} must be >= 0")

    @property
    def on(self) -> bool:
        """Return whether this engine branches."""
        return self.branching != "none"


NAMES = {field.name: field for field in fields(Options)}


def options(config: Any) -> Options:
    """Return the options in a vLLM config's `additional_config`.

    Raises ValueError for a value that makes no sense or an unknown `branching...` key.
    """
    given = getattr(config, "additional_config", None) or {}
    if not isinstance(given, Mapping):
        return Options()
    ours = {name: value for name, value in given.items() if str(name).startswith("branching")}
    if unknown := ours.keys() - NAMES.keys():
        raise ValueError(
            f"additional_config[{min(unknown)!r}] is unknown; known: {', '.join(sorted(NAMES))}"
        )
    return Options(**ours)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--branching` and its options to vLLM's command line."""
    group = parser.add_argument_group("spark", "branching generations (spark-branching)")
    hints = get_type_hints(Options)
    for name, field in NAMES.items():
        assert field.default is not MISSING
        choices = get_args(hints[name]) or None
        kind = str if choices else hints[name]
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=name, type=kind, choices=choices, default=field.default)


def from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags add to `additional_config`; empty where branching is off."""
    given = {name: getattr(args, name) for name in NAMES if hasattr(args, name)}
    chosen = Options(**given)
    return asdict(chosen) if chosen.on else {}
