"""Command-line flags over dataclasses: a flag exists because a field does."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TypeVar

import tyro

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


def first_section(box: str) -> str:
    """Return tyro's boxed error report as one line: the complaint and the nearest flags."""
    rows = [line.strip("│╭╮╰╯ \t") for line in box.splitlines()[1:-1]]
    sections = " ".join("|" if set(row) <= {"─"} else row for row in rows).split("|")
    told = [" ".join(part.split()) for part in sections]
    return "; ".join(part for part in told if part and "full helptext" not in part) or box.strip()


def split_name(argv: Sequence[str], noun: str, usage: str) -> tuple[str | None, list[str]]:
    """Return (leading positional, the flags after it); None where `--help` stands alone.

    Raises ValueError when the name is missing.
    """
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if "-h" in argv or "--help" in argv:
        return None, list(argv)
    raise ValueError(f"{noun} is missing: {usage}")
