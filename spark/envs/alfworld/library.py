"""Instances of the planner library, of which each holds one game at a time."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import fast_downward

LIMIT = 16
"""Instances a process makes at most; each costs a private 33 MB copy of the library's file."""


class Library:
    """One instance, lent to its last borrower."""

    def __init__(self) -> None:
        self.calls: Any = fast_downward.load_lib()
        self._borrower: weakref.ref[Any] | None = None

    def lent_to(self, borrower: Hashable) -> bool:
        """Return whether `borrower` is the last one who borrowed it."""
        return self._borrower is not None and self._borrower() is borrower

    def lend(self, borrower: Hashable) -> None:
        """Give it to `borrower`; what was loaded for another is lost."""
        self._borrower = weakref.ref(borrower)


# the least recently borrowed first
_libraries: list[Library] = []


def borrow(borrower: Hashable) -> Library:
    """Return an instance for `borrower`: a new one, or the one that was borrowed longest ago."""
    library = Library() if len(_libraries) < LIMIT else _libraries.pop(0)
    library.lend(borrower)
    _libraries.append(library)
    return library
