"""OpenAI's request bodies, checked field by field; what an engine cannot honour is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from spark.engines.base import SamplingParams
from spark.serve.backend import Backend
from spark.serve.plan import Constrain, Request
from spark.serve.protocol import (
    Branching,
    RequestError,
    Strict,
    TokenIds,
    characters,
    parsed,
    token_ids,
)

# no influence on what is generated; tool calls are not made of it
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"parallel_tool_calls"}
# value at which a field changes nothing, so that clients may send their defaults
NEUTRAL: dict[str, Any] = {
    "add_special_tokens": True,
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "length_penalty": 1,
    "logit_bias": {},
    "min_tokens": 0,
    "modalities": ["text"],
    "presence_penalty": 0,
    "priority": 0,
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "suffix": "",
    "tool_choice": "auto",
    "top_logprobs": 0,
    "use_beam_search": False,
}
COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` on /v1/completions."""


def _strings(value: Any) -> tuple[str, ...]:
    """Return OpenAI's `stop` as a tuple."""
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError("must be a non-empty string or a list of them")
    return tuple(map(characters, strings))


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise ValueError("one prompt a request; send further ones in requests of their own")
        (value,) = value
    if isinstance(value, str):
        return characters(value)
    try:
        return token_ids(value)
    except ValueError as error:
        raise ValueError(f"must be text or a list of token ids; {error}") from None


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """Fields that both routes share; unknown ones are looked at by `options_of`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    n: int = Field(default=1, ge=1)
    """Leaf budget: most choices that the answer has."""
    max_tokens: int | None = Field(default=None, ge=0)
    """0 = only compute the prompt, as the beginning of a tree."""
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Annotated[tuple[str, ...], PlainValidator(_strings)] = ()
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    branching: Branching | None = None


class EngineOptions(Strict):
    """Fields that some engines honour besides; their processes take every type on trust."""

    allowed_token_ids: TokenIds | None = None
    bad_words: list[str] | None = None
    ebnf: str | None = Field(default=None, min_length=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    json_schema: str | dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    regex: str | None = Field(default=None, min_length=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    structured_outputs: dict[str, Any] | None = None


class CompletionBody(Body):
    """/v1/completions."""

    prompt: Annotated[str | list[int], PlainValidator(_prompt)]
    """Text or token ids; with `branching.tree` what is new behind the leaf, may be empty."""
    logprobs: int | None = Field(default=None, ge=0)


class Message(BaseModel):
    """One message; the chat template sees all of its fields."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(Body):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """The conversation; with `branching.tree` only the new turn."""
    logprobs: bool | None = False
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = {}


AnyBody = CompletionBody | ChatBody


def parse_completion(record: Any, backend: Backend) -> CompletionBody:
    """Return the checked body. Raises RequestError naming the field at fault."""
    body = parsed(CompletionBody, record)
    _check(body, backend)
    if body.logprobs:
        raise RequestError(
            f"logprobs={body.logprobs}: only the sampled token's log-probability is known; use 0",
            param="logprobs",
        )
    return body


def parse_chat(record: Any, backend: Backend) -> ChatBody:
    """Return the checked body. Raises RequestError naming the field at fault."""
    body = parsed(ChatBody, record)
    _check(body, backend)
    return body


def to_request(
    body: Body, tokens: list[int], backend: Backend, constrain: Constrain | None
) -> Request:
    """Return what to run for `body` on `tokens`."""
    if isinstance(body, ChatBody):
        most = body.max_completion_tokens or body.max_tokens or backend.context
    else:
        most = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    try:
        params = SamplingParams(
            max_tokens=max(1, most),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=max(0, body.top_k or 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
            stop=body.stop,
            stop_token_ids=_stop_ids(body, backend),
        )
    except ValueError as error:
        # the message begins with the name of the field
        raise RequestError(str(error), param=str(error).split()[0]) from None
    return Request(
        tokens=tokens,
        n=body.n,
        params=params,
        branching=body.branching or Branching(policy="none", keep=False),
        options=options_of(body, backend),
        constrain=constrain,
        prefill=body.max_tokens == 0,
    )


def options_of(body: Body, backend: Backend) -> dict[str, Any]:
    """Return the fields that only this engine honours. Raises RequestError for any other."""
    options = {}
    for name, value in (body.model_extra or {}).items():
        if name in backend.options and value is not None:
            options[name] = value
        elif not (name in IGNORED or value is None or NEUTRAL.get(name, object()) == value):
            raise RequestError(
                f"{name} is not supported by this server's engine: leave it out", param=name
            )
    checked = parsed(EngineOptions, options).model_dump(exclude_unset=True)
    for name in ("allowed_token_ids", "logit_bias"):
        _check_tokens(name, checked.get(name, ()), backend)
    if isinstance(schema := checked.get("json_schema"), dict):
        checked["json_schema"] = json.dumps(schema)
    return checked


def _check_tokens(name: str, tokens: Iterable[int | str], backend: Backend) -> None:
    """Raise RequestError for an id outside the vocabulary; keys of JSON objects are strings."""
    for token in tokens:
        if not str(token).isdecimal() or int(token) >= backend.vocab_size:
            raise RequestError(
                f"{name} has {token!r}, no token id in [0, {backend.vocab_size})", param=name
            )


def _stop_ids(body: Body, backend: Backend) -> tuple[int, ...]:
    _check_tokens("stop_token_ids", body.stop_token_ids or (), backend)
    ends = () if body.ignore_eos else backend.eos_token_ids
    return (*(body.stop_token_ids or ()), *ends)


def _check(body: Body, backend: Backend) -> None:
    """Raise RequestError for what pydantic cannot see."""
    if body.model not in (None, backend.model, *backend.aliases):
        raise RequestError(
            f"model={str(body.model)[:80]!r} is not served here; this is {backend.model!r}",
            param="model",
            status=404,
        )
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream=true", param="stream_options")
    if body.max_tokens == 0 and (body.branching is None or body.n > 1):
        raise RequestError(
            "max_tokens=0 begins a tree: it needs branching and n=1", param="max_tokens"
        )
    if body.branching is not None:
        body.branching.check()
        if body.branching.constraint is not None and not backend.constrains:
            raise RequestError(
                "this server's engine cannot constrain tokens: leave branching.constraint out "
                "(recipes: --rollout.no_constrain)",
                param="branching.constraint",
            )


def encoded(tokenizer: Any, body: Body, text: str) -> list[int]:
    """Return the tokens of a prompt; those of a text's beginning only where a text begins."""
    begins = body.branching is None or body.branching.tree is None
    return list(tokenizer.encode(text, add_special_tokens=begins))


def plain(at: int, message: Message) -> dict[str, Any]:
    """Return message `at` as templates want it: its content as text, arguments of calls as objects.

    They would print lists as Python does, and write JSON once more as JSON. Raises RequestError for
    parts that are no text.
    """
    fields = message.model_dump(exclude_unset=True)
    calls, where = fields.get("tool_calls") or [], f"messages.{at}.tool_calls"
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list", param=where)
    for number, call in enumerate(calls):
        _read_arguments(call, f"{where}.{number}")
    if "content" not in fields or isinstance(message.content, str):
        return fields
    texts = []
    for number, part in enumerate(message.content or []):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            where = f"messages.{at}.content.{number}"
            raise RequestError(f"{where} must be a text part: this model reads text", param=where)
        texts.append(part["text"])
    return {**fields, "content": "\n".join(texts)}


def _read_arguments(call: Any, where: str) -> None:
    """Turn the arguments of a tool call, which OpenAI sends as JSON in a string, into an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise RequestError(f"{where} must have a function", param=where)
    if isinstance(given := function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(given or "{}")
        except ValueError as error:
            where += ".function.arguments"
            raise RequestError(f"{where} is not JSON: {error}", param=where) from None
