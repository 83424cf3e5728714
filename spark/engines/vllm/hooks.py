"""Wrapping a method of vLLM, once per process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

MARK = "__spark_wraps__"


def around(owner: type, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace method `name` of `owner` by a function that gets the original as first argument.

    Static and class methods stay what they are; of a class method the original is unbound. A
    second call leaves the first replacement in place.

    Example:
        @around(Engine, "add")
        def add(original, self, request): return original(self, request)
    """
    found = owner.__dict__[name]
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    original = found.__func__ if kind else found

    def replace(function: Callable[..., Any]) -> None:
        if hasattr(original, MARK):
            return

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        setattr(wrapped, MARK, function)
        setattr(owner, name, kind(wrapped) if kind else wrapped)

    return replace
