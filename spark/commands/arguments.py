"""Command-line flags over dataclasses: a flag exists because a field does."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import tyro

if TYPE_CHECKING:
    from spark.recipes.config import Recipe

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Return `kind` with the fields that `argv` sets; `--help` prints them and exits.

    Raises ValueError with one line that names the field at fault.
    """
    start = tyro.MISSING_NONPROP if default is None else default
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                args=list(argv),
                prog=prog,
                default=start,
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(first_section(complaint.getvalue())) from None


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and hints off the terminal: ours are enough."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def first_section(box: str) -> str:
    """Return tyro's boxed error report as one line: the complaint and the nearest flags."""
    rows = [line.strip("│╭╮╰╯ \t") for line in box.splitlines()[1:-1]]
    sections = " ".join("|" if set(row) <= {"─"} else row for row in rows).split("|")
    told = [" ".join(re.sub(r"in spark[^-]*--help", "", part).split()) for part in sections]
    return "; ".join(part for part in told if part and "full helptext" not in part) or box.strip()


def named_recipe(argv: Sequence[str], command: str) -> tuple[str, Recipe, list[str]]:
    """Return (name, its recipe, the flags after it). `--help` without a name lists the recipes.

    Raises ValueError when the name is missing, unknown or that of something else.
    """
    from spark.recipes import RECIPES
    from spark.recipes.config import Recipe

    known = f"{', '.join(sorted(RECIPES))}, or module:function"
    if not argv or argv[0].startswith("-"):
        if "-h" not in argv and "--help" not in argv:
            raise ValueError(f"recipe is missing: {command} RECIPE, one of {known}")
        print(f"usage: {command} RECIPE [--field value]\n\nrecipes: {known}")
        print(f"{command} RECIPE --help lists the fields with their defaults.")
        raise SystemExit(0)
    name, *flags = argv
    recipe = RECIPES.make(name)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe {name!r} returns {type(recipe).__name__}, not a Recipe")
    return name, recipe, flags
