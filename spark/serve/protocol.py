"""What a client may ask for besides OpenAI's own fields: the `branching` object, checked."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
)

from spark.branching import RULES
from spark.branching.base import BranchRule

MOST_REPORTED = 120
"""Characters of a bad value that an error message repeats."""

T = TypeVar("T", bound=BaseModel)


def token_ids(value: Any) -> list[int]:
    """Return `value` if it is a list of token ids; stops at the first entry that is none."""
    if not isinstance(value, list):
        raise ValueError("must be a list of token ids")
    for at, entry in enumerate(value):
        if type(entry) is not int or entry < 0:
            raise ValueError(f"entry {at} is {shown(entry)}, not a token id")
    return value


def characters(text: str) -> str:
    """Return `text` if it is whole characters: JSON can cut a pair of surrogates in two."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character at {error.start}: send whole ones") from None
    return text


def shown(value: Any) -> str:
    """Return a bad value as far as an error message repeats it."""
    text = repr(value)
    return text if len(text) <= MOST_REPORTED else text[:MOST_REPORTED] + "..."


TokenIds = Annotated[list[int], PlainValidator(token_ids)]


class RequestError(ValueError):
    """The request cannot be honoured; becomes an answer in OpenAI's error format."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, retry_s: int = 0
    ) -> None:
        """`param` names the field at fault; `retry_s` > 0: the same request may pass later."""
        super().__init__(message)
        self.param, self.status, self.retry_s = param, status, retry_s

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.status}
        return {"error": error}


class Strict(BaseModel):
    """No conversions ("8" is not 8) and no unknown fields: nothing is silently ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Constraint(Strict):
    """Limits what may follow an opening tag to one of some token sequences."""

    opening: str = Field(min_length=1, max_length=64)
    """The tag, e.g. "<action>"; choices start behind the token that completes it."""
    choices: list[TokenIds] = Field(min_length=1)
    before: TokenIds = []
    """Tokens of the decision that an earlier request sampled."""


class Pause(Strict):
    """Ends a generation right behind a token, so that the client decides what comes next."""

    tags: list[Annotated[str, StringConstraints(min_length=1)]] = []
    """Behind the token that completes one of these strings."""
    entropy_above: float | None = Field(default=None, ge=0)
    """Behind a token drawn at an entropy, nats, above this."""


class Branching(Strict):
    """How a request branches, or which leaf of which tree it continues.

    Example:
        Branching(policy="spark", roots=4, width=2, max_depth=6, trigger="<explore>")
        Branching(tree="tree-ab12", **{"from": 5})
    """

    policy: str | None = None
    """A rule with a trigger inside a generation (spark, entropy), or "none": independent chains.
    None = the policy of the tree that is continued; spark for a new one."""
    roots: int | None = Field(default=None, ge=1)
    """Generations that start at the prompt; the rest of `n` is for forks. None = 1, and `n` with
    policy "none"."""
    width: int | None = Field(default=None, ge=2)
    """Continuations of a state that branches; None = 2."""
    max_depth: int | None = Field(default=None, ge=1)
    """Forks on the path of one leaf at most; None = no limit."""
    trigger: Annotated[str, StringConstraints(pattern=r"^<[A-Za-z][\w-]{0,31}>$")] | None = None
    """Policy spark: the opening tag; its closing tag forks. None = "<explore>"."""
    entropy_threshold: float | None = Field(default=None, ge=0)
    """Policy entropy: fork before a token drawn at an entropy, nats, above this; None = 1."""
    return_nodes: bool = True
    """Whether the answer lists the nodes."""
    keep: bool = True
    """Whether the tree may be continued; False frees its KV with the answer."""
    constraint: Constraint | None = None
    pause: Pause | None = None
    """With policy "none"; the leaf's last node then has the stop "trigger"."""
    tree: str | None = None
    """Continue this tree ..."""
    from_node: int | None = Field(default=None, alias="from", ge=0)
    """... behind this node ..."""
    fork_at: int | None = Field(default=None, ge=1)
    """... or behind this many tokens of the path that ends there, the prompt's included."""
    prefix: TokenIds | None = None
    """What the client takes the path's tokens to be; refused where they are not."""

    def check(self) -> None:
        """Raise RequestError where fields do not fit each other."""
        if (self.tree is None) != (self.from_node is None):
            given, missing = ("tree", "from") if self.tree is not None else ("from", "tree")
            raise RequestError(
                f"branching.{given} needs branching.{missing}: a leaf is continued by both",
                param=f"branching.{missing}",
            )
        for name in ("fork_at", "prefix"):
            if self.tree is None and getattr(self, name) is not None:
                raise RequestError(
                    f"branching.{name} needs branching.tree and branching.from",
                    param=f"branching.{name}",
                )

    def rule(self, policy: str) -> BranchRule:
        """Return the rule named `policy`. Raises RequestError where it cannot work in a server."""
        # names alone: "module:attribute" would let a client import what it likes
        if policy not in RULES:
            raise RequestError(
                f'branching.policy is {policy!r}: use "spark", "entropy" or "none"',
                param="branching.policy",
            )
        kind = RULES[policy]
        names = {field.name for field in fields(kind)}
        settings: dict[str, Any] = {}
        for field, name in (
            ("width", "width"),
            ("trigger", "tag"),
            ("entropy_threshold", "entropy_threshold"),
        ):
            value = getattr(self, field)
            if value is None:
                continue
            if name not in names:
                raise RequestError(
                    f"branching.{field} has no meaning for policy {policy!r}: leave it out",
                    param=f"branching.{field}",
                )
            settings[name] = value.strip("<>") if field == "trigger" else value
        rule: BranchRule = kind(**settings)
        if rule.watch is None and policy != "none":
            raise RequestError(
                f"branching.policy={policy!r} decides between turns, not inside a generation; "
                'use "spark", "entropy" or "none"',
                param="branching.policy",
            )
        return rule


def parse_branching(record: Any) -> Branching:
    """Return the checked `branching` object. Raises RequestError naming the field at fault."""
    return parsed(Branching, record, "branching")


def parsed(kind: type[T], record: Any, path: str = "") -> T:
    """Return `record` as `kind`. Raises RequestError whose `param` starts with `path`."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        raise _first(error, path) from None


def _first(error: ValidationError, path: str) -> RequestError:
    """Return the first complaint of pydantic as ours."""
    first = error.errors(include_url=False)[0]
    param = ".".join([path, *map(str, first["loc"])]).strip(".")
    if first["type"] == "extra_forbidden":
        return RequestError(f"{param} is not a known field", param=param)
    if first["type"] == "missing":
        return RequestError(f"{param} is missing", param=param)
    if first["type"] == "model_type":
        told = f"{param or 'the body'} is {shown(first['input'])}: send a JSON object"
        return RequestError(told, param=param or None)
    told = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{param}={shown(first['input'])}: {told}", param=param)
