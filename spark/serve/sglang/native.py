"""SGLang's native /generate with a `branching` object: its fields in, its shape out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from spark.serve.openai import encoded, parse_completion
from spark.serve.protocol import Branching, RequestError, TokenIds, parsed
from spark.serve.routes import TreeRoutes, refusal

# SGLang's names -> those of /v1/completions
RENAMED = {"max_new_tokens": "max_tokens", "sampling_seed": "seed", "min_new_tokens": "min_tokens"}
NEUTRAL = {"return_logprob": False, "logprob_start_len": -1, "top_logprobs_num": 0}


class GenerateBody(BaseModel):
    """What is taken of SGLang's request; anything else must be left out."""

    model_config = ConfigDict(strict=True, extra="allow")

    text: str | None = None
    input_ids: TokenIds | None = None
    sampling_params: dict[str, Any] = {}
    stream: bool = False
    branching: Branching


class NativeRoutes:
    """Answers /generate with the leaves of a tree; `router` has the route."""

    def __init__(self, routes: TreeRoutes) -> None:
        self._routes = routes
        self.router = APIRouter()
        self.router.add_api_route("/generate", self.generate, methods=["POST"])

    async def generate(self, http: Request) -> Response:
        """Return {"outputs": [a leaf in SGLang's shape, ...], "branching": {...}}.

        A stream has an event per step of a leaf, which says its `index` and, as SGLang's do, all
        of its text and tokens so far; the last event has `branching` and `usage`.
        """
        try:
            routes = self._routes
            body = parsed(GenerateBody, await routes.json(http))
            completion = parse_completion(as_completion(body), routes.trees.backend)
            tokens = completion.prompt
            if isinstance(tokens, str):
                tokens = encoded(routes.trees.backend.tokenizer, completion, tokens)
            chunk = NativeStream().chunk
            return await routes.answer(http, completion, tokens, whole=as_native, chunk=chunk)
        except Exception as error:
            # whatever went wrong, the client is told in one format
            return refusal(error)


def as_completion(body: GenerateBody) -> dict[str, Any]:
    """Return the same request as a body of /v1/completions. Raises RequestError."""
    for name, value in (body.model_extra or {}).items():
        if NEUTRAL.get(name, object()) != value:
            raise RequestError(
                f"{name} does not go with branching on /generate: leave it out", param=name
            )
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("give one of text and input_ids", param="input_ids")
    params = {RENAMED.get(name, name): value for name, value in body.sampling_params.items()}
    # SGLang writes "no limit" as -1 and its own default as 128
    params.setdefault("max_tokens", 128)
    prompt = body.text if body.input_ids is None else body.input_ids
    branching = body.branching.model_dump(by_alias=True, exclude_unset=True)
    fields = {**params, "prompt": prompt, "branching": branching, "return_token_ids": True}
    if body.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


def as_native(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of /v1/completions in SGLang's shape."""
    outputs = [output(whole["id"], c, c["text"], c["token_ids"]) for c in whole["choices"]]
    return {"outputs": outputs, "branching": whole["branching"], "usage": whole["usage"]}


class NativeStream:
    """Gives the chunks of one stream SGLang's shape."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._tokens: dict[int, list[int]] = {}

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Return a leaf as far as it has come, or the end of the stream."""
        if not chunk["choices"]:
            return {"branching": chunk["branching"], "usage": chunk["usage"]}
        (choice,) = chunk["choices"]
        at = choice["index"]
        text = self._texts[at] = self._texts.get(at, "") + choice["text"]
        tokens = self._tokens[at] = self._tokens.get(at, []) + choice["token_ids"]
        return {"index": at, **output(chunk["id"], choice, text, tokens)}


def output(name: str, choice: dict[str, Any], text: str, tokens: list[int]) -> dict[str, Any]:
    """Return a leaf as SGLang shows an output; `finish_reason` is None while it runs."""
    reason = choice["finish_reason"]
    meta = {
        "id": f"{name}.{choice['index']}",
        "finish_reason": None if reason is None else {"type": reason},
        "completion_tokens": len(tokens),
        "branch": choice["branch"],
    }
    return {"text": text, "output_ids": tokens, "meta_info": meta}
