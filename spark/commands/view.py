"""`spark view RUN`: the report of a run, or one of its trees in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from spark.commands.arguments import parse

LATEST = -1


@dataclass(kw_only=True, slots=True)
class ViewOptions:
    """Write the report of a run (or of a file of trees), or draw one tree in the terminal."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a file of trees."""
    terminal: bool = False
    """Print one tree here instead of writing the page."""
    tree: int = LATEST
    """Which tree --terminal prints, from 0; negative counts from the end."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(ViewOptions, argv, prog="spark view")
    if not options.run.exists():
        raise ValueError(f"run={options.run}: no such file or directory")
    if options.tree != LATEST and not options.terminal:
        raise ValueError(f"tree={options.tree} is what --terminal prints: add --terminal")
    if options.terminal:
        from rich.console import Console

        from spark.view.run import load_run
        from spark.view.terminal import show_run

        show_run(load_run(options.run), options.tree, Console())
        return
    from spark.view.report import write_report

    print(write_report(options.run))
