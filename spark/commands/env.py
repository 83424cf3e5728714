"""`spark env check SOURCE`: does an environment keep the rules, and what do its forks cost?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from spark.commands.arguments import parse

USAGE = "spark env check SOURCE [--split train]"


@dataclass(kw_only=True, slots=True)
class CheckOptions:
    """Run the rules that every environment must keep, then measure forks against replays.

    Exit code 1 when a rule is broken or a fork goes another way than its environment promises.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Name of an environment, or module:Source with a class or function that makes a source."""
    split: str = "train"
    """Split whose tasks are used."""
    depths: tuple[int, ...] = (5, 20, 50)
    """Steps from the start at which forks are measured."""
    continuations: int = 20
    """Random forks whose continuations are compared."""
    seed: int = 0
    """Of the random walks."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {USAGE}\n\nspark env check --help lists the fields.")
        return
    if not argv or argv[0] != "check":
        raise ValueError(f"unknown {' '.join(argv[:1]) or 'nothing'!r}; use: {USAGE}")
    options = parse(CheckOptions, argv[1:], prog="spark env check")
    if not options.depths or min(options.depths) < 1:
        raise ValueError(f"depths={options.depths} must be positive")
    from spark.envs import load_source
    from spark.envs.conformance import conform
    from spark.envs.measure import measure

    source = load_source(options.source)
    try:
        conform(source, split=options.split)
        print("rules          kept")
        report = measure(
            source,
            split=options.split,
            depths=options.depths,
            continuations=options.continuations,
            seed=options.seed,
        )
    finally:
        if hasattr(source, "close"):
            source.close()
    for cost in report.forks:
        ratio = cost.replay_ms / cost.fork_ms
        print(
            f"depth {cost.depth:<8} fork by {cost.kind} {cost.fork_ms:.3g} ms, "
            f"replay {cost.replay_ms:.3g} ms: {ratio:.2f}x"
        )
    same = report.continuations - len(report.differences)
    print(f"continuations  {same} of {report.continuations} the same ({report.determinism})")
    print(f"steps          {report.steps_per_s:.0f} a second, reset {report.reset_ms:.3g} ms")
    print(f"memory         {report.memory_mb:.0f} MB")
    if report.differences:
        raise RuntimeError(f"a fork goes another way: {report.differences[0]}")
