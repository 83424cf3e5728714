"""How long a process is in some functions, what they call of others left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

Function = Callable[..., Any]


class OwnTime:
    """Adds up the seconds in functions made by `ours`, less those in functions made by `theirs`.

    They may call each other in any way, in one thread.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._left_out = 0.0
        """Seconds that do not count for the call of ours that is innermost."""

    def ours(self, function: Function) -> Function:
        """Return `function`, whose time counts."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            outer, self._left_out = self._left_out, 0.0
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - start
                self.seconds += took - self._left_out
                # counted now: not once more by who called
                self._left_out = outer + took

        return timed

    def theirs(self, function: Function) -> Function:
        """Return `function`, whose time does not count."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            outer, start = self._left_out, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._left_out = outer + time.perf_counter() - start

        return timed
