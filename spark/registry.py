"""Names for implementations, imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import signature
from typing import Any


class Registry:
    """A lazy map from names to objects; a value "module:attribute" is imported on first use.

    Example:
        RULES = Registry("rule", {"spark": "spark.branching.rules:SparkRule"})
        RULES["spark"]            # the class; RULES["sprak"] raises ValueError with the known names
        RULES["mine"] = MyRule    # an object or another "module:attribute"
        RULES["my.rules:MyRule"]  # somebody else's, imported
    """

    def __init__(self, noun: str, entries: Mapping[str, Any] | None = None) -> None:
        """`noun` is what one entry is called in error messages."""
        self.noun = noun
        self._entries: dict[str, Any] = dict(entries or {})

    def __getitem__(self, name: str) -> Any:
        self.check(name)
        if name not in self._entries:
            return load(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = load(entry)
        return entry

    def make(self, name: str, *given: Any, **named: Any) -> Any:
        """Return what the class or function `name` makes of what it is given.

        Raises ValueError where it is neither, or asks for something else.
        """
        kind = self[name]
        try:
            signature(kind).bind(*given, **named)
        except TypeError as error:
            asked = ", ".join([*(type(each).__name__ for each in given), *named]) or "nothing"
            raise ValueError(
                f"{self.noun} {name!r}: {error}; name a class or function that asks for {asked}"
            ) from error
        return kind(*given, **named)

    def check(self, name: str) -> None:
        """Raise ValueError unless `name` may stand for something; nothing is imported."""
        if name not in self._entries and ":" not in name:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ValueError(f"unknown {self.noun} {name!r}; known: {known}, or module:attribute")

    def __setitem__(self, name: str, entry: Any) -> None:
        self._entries[name] = entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def load(path: str) -> Any:
    """Return the object at "module:attribute".

    Raises ValueError where the module lacks it, and what importing the module raises.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError as error:
        raise ValueError(f"{path!r}: {error}") from error
