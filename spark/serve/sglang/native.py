"""SGLang's native /generate with a `branching` object: its fields in, its shape out."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from spark.serve.openai import parse_completion
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
        """Return {"outputs": [a leaf in SGLang's shape, ...], "branching": {...}}."""
        try:
            routes = self._routes
            body = parsed(GenerateBody, await routes.json(http))
            completion = parse_completion(as_completion(body), routes.trees.backend)
            tokens = completion.prompt
            if isinstance(tokens, str):
                tokens = list(routes.trees.backend.tokenizer.encode(tokens))
            answer = await routes.answer(http, completion, tokens)
            return JSONResponse(as_native(json.loads(bytes(answer.body))))
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
    if body.stream:
        raise RequestError("a stream of leaves is served on /v1/completions", param="stream")
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("give one of text and input_ids", param="input_ids")
    params = {RENAMED.get(name, name): value for name, value in body.sampling_params.items()}
    # SGLang writes "no limit" as -1 and its own default as 128
    params.setdefault("max_tokens", 128)
    prompt = body.text if body.input_ids is None else body.input_ids
    branching = body.branching.model_dump(by_alias=True, exclude_unset=True)
    return {**params, "prompt": prompt, "branching": branching, "return_token_ids": True}


def as_native(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of /v1/completions in SGLang's shape."""
    outputs = []
    for choice in whole["choices"]:
        meta = {
            "id": f"{whole['id']}.{choice['index']}",
            "finish_reason": {"type": choice["finish_reason"]},
            "completion_tokens": len(choice["token_ids"]),
            "branch": choice["branch"],
        }
        outputs.append(
            {"text": choice["text"], "output_ids": choice["token_ids"], "meta_info": meta}
        )
    return {"outputs": outputs, "branching": whole["branching"], "usage": whole["usage"]}
