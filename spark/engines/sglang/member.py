"""What a request says about its tree: `sampling_params.custom_params["spark"]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True, slots=True, frozen=True)
class Member:
    """A request's place in a tree.

    Example:
        Member.parse({"tree": "t1", "parent": "rid-7", "at": 40, "output": [3, 9], "score": True})
    """

    tree: str | None = None
    """Name of the tree that claims the request's KV; None = no claim."""
    parent: str | None = None
    """Request id of the member this one was forked from."""
    at: int = 0
    """Tokens, prompt included, that are shared with the parent."""
    output: tuple[int, ...] = ()
    """Tokens after the prompt that count as sampled by this request (penalties, stops, limits)."""
    score: bool = False
    """Return log-probability, entropy and kept mass of every sampled token in `meta_info`."""
    choices: Mapping[str, Any] | None = None
    """A constraint as data; see `spark.engines.sglang.choices`."""

    @classmethod
    def parse(cls, given: Any) -> Member:
        """Return the member that `given` describes.

        Raises ValueError naming the field, e.g. `spark.at`.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"spark must be an object, got {given!r}")
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            raise ValueError(f"spark.{unknown[0]} is not known; use {list(cls.__slots__)}")
        member = cls(**{**given, "output": _tokens(given.get("output", ()))})
        for name, kind in (("tree", str), ("parent", str)):
            value = getattr(member, name)
            if value is not None and (not isinstance(value, kind) or not value):
                raise ValueError(f"spark.{name} must be a non-empty string, got {value!r}")
        if member.parent is not None and member.tree is None:
            raise ValueError("spark.parent needs spark.tree: a fork belongs to a tree")
        if isinstance(member.at, bool) or not isinstance(member.at, int) or member.at < 0:
            raise ValueError(f"spark.at must be >= 0 tokens, got {member.at!r}")
        if not isinstance(member.score, bool):
            raise ValueError(f"spark.score must be true or false, got {member.score!r}")
        return member


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"spark.output must be a list of token ids, got {value!r}")
    if wrong := [token for token in value if not isinstance(token, int) or token < 0]:
        raise ValueError(f"spark.output must hold token ids >= 0, got {wrong[0]!r}")
    return tuple(value)


def member_of(params: Any) -> Member | None:
    """Return the member described by SGLang sampling parameters; None = an ordinary request."""
    custom = getattr(params, "custom_params", None)
    given = custom.get("spark") if isinstance(custom, Mapping) else None
    return None if given is None else Member.parse(given)
