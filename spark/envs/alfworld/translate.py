"""Planning problem -> what the planner library loads, kept on disk (the translation is slow)."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fast_downward
from fast_downward.translate.pddl.conditions import Atom

from spark.envs.cache import cache_dir, write_atomic

FORMAT = "1"


class Problem(NamedTuple):
    """A translated problem, plain strings throughout: hashes of the engine's own objects differ
    between processes, so those are rebuilt from these by whoever loads them.
    """

    sas: str
    types: list[tuple[str, list[str]]]
    """(type, its supertypes)."""
    entities: dict[str, str]
    """Entity id -> type."""
    parameters: dict[str, list[tuple[str, str]]]
    """Action -> its parameters as (name, type)."""
    facts: list[list[str]]
    """Initial facts as [predicate, entity id, ...]."""
    changing: list[str]
    """Predicates that some action changes."""


def translate(domain: str, problem: str) -> Problem:
    """Return the translation that plays the game, from the cache where it is there."""
    path = cached_at(domain, problem)
    try:
        return Problem(*json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError, zlib.error):
        # absent, or spoilt by something outside: make it again
        made = _translate(domain, problem)
    write_atomic(path, gzip.compress(json.dumps(made).encode(), compresslevel=5, mtime=0))
    return made


def cached_at(domain: str, problem: str) -> Path:
    """Return the file that holds a translation once it was made."""
    key = hashlib.sha256("\0".join((FORMAT, domain, problem)).encode()).hexdigest()
    return cache_dir() / "alfworld" / key[:2] / f"{key[2:34]}.json.gz"


def translate_for_planning(domain: str, problem: str) -> str:
    """Return the pruned translation that the planner searches in."""
    with _translator():
        return str(fast_downward.pddl2sas(domain, problem, optimize=True)[1])


def _translate(domain: str, problem: str) -> Problem:
    with _translator():
        task, sas = fast_downward.pddl2sas(domain, problem)
    facts = [
        [atom.predicate, *atom.args]
        for atom in task.init
        if isinstance(atom, Atom) and atom.predicate != "="
    ]
    return Problem(
        sas=sas,
        types=[(kind.name, list(kind.supertype_names)) for kind in task.types],
        entities={entity.name: entity.type_name for entity in task.objects},
        parameters={
            action.name: [(parameter.name, parameter.type_name) for parameter in action.parameters]
            for action in task.actions
        },
        facts=facts,
        changing=_changing(task),
    )


def _changing(task: Any) -> list[str]:
    """Return the predicates that some action of a parsed task makes true or false."""
    return sorted(
        {effect.literal.predicate for action in task.actions for effect in action.effects}
    )


@contextmanager
def _translator() -> Iterator[None]:
    """Undo what the translator does to `sys.argv`, and spare it the garbage collector (a third of
    its time).
    """
    arguments, collecting = sys.argv, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        sys.argv = arguments
        if collecting:
            gc.enable()
