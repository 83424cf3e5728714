"""Makes TextWorld's text generation fast by remembering pure functions, changing no result.

The stock generator parses every grammar rule and every query again each time it is used, and
deep-copies contexts whose values it never changes.
"""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

from textworld.envs.pddl import textgen
from textworld.logic import Rule

_parse = cache(textgen._parse_and_convert)


def install() -> None:
    """Replace those functions in `textworld.envs.pddl.textgen`, for this process; repeatable."""
    textgen._parse_and_convert = _parse_copied
    textgen.copy_context = _copy_context
    textgen.deepcopy = _copy_symbols
    textgen.Rule = SimpleNamespace(parse_conjunctive_query=cache(Rule.parse_conjunctive_query))


def _parse_copied(text: str, **options: Any) -> list[textgen.Symbol]:
    # a derivation writes its context into the symbols
    return [copy.copy(symbol) for symbol in _parse(text, **options)]


def _copy_symbols(symbols: Any) -> Any:
    if isinstance(symbols, list):
        return [copy.copy(symbol) for symbol in symbols]
    return copy.copy(symbols)


def _copy_context(context: dict[str, Any]) -> dict[str, Any]:
    return {
        **context,
        "variables": dict(context["variables"]),
        "mapping": dict(context["mapping"]),
    }
