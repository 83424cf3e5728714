"""The HTTP routes of a tree server, for an application of our own or an engine's."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from spark.engines.base import EngineError
from spark.serve.answer import Answer
from spark.serve.chat import ChatFormat
from spark.serve.constraint import Constraints
from spark.serve.jobs import ClientLeft, Emit, Jobs
from spark.serve.openai import (
    AnyBody,
    ChatBody,
    CompletionBody,
    encoded,
    parse_chat,
    parse_completion,
    plain,
    to_request,
)
from spark.serve.plan import Request as TreeRequest
from spark.serve.plan import tokens_before
from spark.serve.protocol import RequestError
from spark.serve.trees import FULL_RETRY_S, Trees

Shape = Callable[[dict[str, Any]], dict[str, Any]]


class TreeRoutes:
    """Answers generation requests with trees; `router` has the routes."""

    def __init__(self, trees: Trees, chat: ChatFormat, *, branching: bool = True) -> None:
        """`branching`: whether requests may ask for trees."""
        self.trees, self.jobs = trees, Jobs()
        self._chat, self._branching = chat, branching
        self._constraints = Constraints(trees.backend)
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/v1/completions", self.completions, methods=["POST"])
        add("/v1/chat/completions", self.chat_completions, methods=["POST"])
        add("/v1/trees", self.facts, methods=["GET"])
        add("/v1/trees/{tree_id}", self.delete_tree, methods=["DELETE"])

    async def completions(self, http: Request) -> Response:
        """Continue a prompt."""
        try:
            return await self.answer(http, *self._completion(await self.json(http)))
        except Exception as error:
            # whatever went wrong, the client gets OpenAI's error format
            return refusal(error)

    async def chat_completions(self, http: Request) -> Response:
        """Answer a conversation."""
        try:
            body = parse_chat(await self.json(http), self.trees.backend)
            return await self.answer(http, body, self._chat_tokens(body))
        except Exception as error:
            # see above
            return refusal(error)

    async def facts(self) -> Response:
        """Say what this server is and takes: clients look here first."""
        return JSONResponse(self.describe())

    async def delete_tree(self, tree_id: str) -> Response:
        """Drop a tree and its KV; requests that grow it end with an error."""
        try:
            await self.trees.delete(tree_id)
        except RequestError as error:
            return refusal(error)
        engine = dict(self.trees.backend.stats())
        return JSONResponse({"id": tree_id, "deleted": True, "engine": engine})

    def describe(self) -> dict[str, Any]:
        """Return what `facts` answers."""
        backend, limits = self.trees.backend, self.trees.limits
        return {
            "engine": backend.name,
            "model": backend.model,
            "context": backend.context,
            "vocab_size": backend.vocab_size,
            "constrains": backend.constrains,
            "options": sorted(backend.options),
            "limits": asdict(limits),
            "stats": dict(backend.stats()),
        }

    async def complete(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to the body of a completion that came by no HTTP."""
        body, tokens = self._completion(record)
        return await self._whole(body, self._request(body, tokens))

    async def json(self, http: Request) -> Any:
        """Return the request's body. Raises RequestError when it is too large or not JSON."""
        limit = self.trees.limits.max_body_bytes
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > limit:
                raise RequestError(
                    f"the body is larger than {limit} bytes (max_body_bytes)", status=413
                )
        try:
            return json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON: {error}") from None

    def _completion(self, record: Any) -> tuple[CompletionBody, list[int]]:
        """Return the checked body and the prompt's tokens."""
        body = parse_completion(record, self.trees.backend)
        if isinstance(body.prompt, str):
            return body, encoded(self.trees.backend.tokenizer, body, body.prompt)
        return body, body.prompt

    def _request(self, body: AnyBody, tokens: list[int]) -> TreeRequest:
        """Return what to run. Raises RequestError for what this server does not do."""
        if body.branching is not None and not self._branching:
            raise RequestError(
                "this server does not branch: serve with --branching spark", param="branching"
            )
        wire = None if body.branching is None else body.branching.constraint
        return to_request(body, tokens, self.trees.backend, self._constraints.make(wire))

    def _chat_tokens(self, body: ChatBody) -> list[int]:
        messages = [plain(at, message) for at, message in enumerate(body.messages)]
        variables = dict(body.chat_template_kwargs)
        if body.tools is not None:
            variables["tools"] = body.tools
        if body.branching is None or body.branching.tree is None:
            return self._chat.prompt(messages, **variables)
        before = tokens_before(self.trees.find(body.branching.tree), body.branching)
        return self._chat.turn(messages, before[-1:], **variables)

    async def answer(
        self,
        http: Request,
        body: AnyBody,
        tokens: list[int],
        *,
        whole: Shape = dict,
        chunk: Shape = dict,
    ) -> Response:
        """Run what `body` asks for behind `tokens`. Raises what `refusal` turns into an answer.

        `whole` and `chunk` give OpenAI's answer and chunks another shape.
        """
        request = self._request(body, tokens)
        if not body.stream:
            return JSONResponse(whole(await self.jobs.whole(http, self._whole(body, request))))
        pieces = self.jobs.pieces(
            http,
            lambda emit: self._stream(body, request, lambda piece: emit(chunk(piece))),
        )
        # what is refused is refused before the stream begins
        first = await anext(pieces)
        return StreamingResponse(_events(first, pieces), media_type="text/event-stream")

    async def _whole(self, body: AnyBody, request: TreeRequest) -> dict[str, Any]:
        async with self.trees.run(request) as (tree, run), aclosing(run.events()) as events:
            async for _ in events:
                pass
        return Answer(body, self.trees, tree, run).whole()

    async def _stream(self, body: AnyBody, request: TreeRequest, emit: Emit) -> None:
        async with self.trees.run(request) as (tree, run), aclosing(run.events()) as events:
            answer = Answer(body, self.trees, tree, run)
            async for event in events:
                for chunk in answer.chunks(event):
                    emit(chunk)
        for chunk in answer.last_chunks():
            emit(chunk)


async def _events(first: Any, pieces: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
    """Yield server-sent events; an error ends the stream, said in an event of its own."""
    try:
        yield _event(first)
        async with aclosing(pieces):
            async for piece in pieces:
                yield _event(piece)
    except ClientLeft:
        return
    except Exception as error:
        # the status was sent long ago
        yield _event(as_request_error(error).body())
    yield "data: [DONE]\n\n"


def _event(record: Any) -> str:
    return f"data: {json.dumps(record, separators=(',', ':'))}\n\n"


def as_request_error(error: Exception) -> RequestError:
    """Return `error` as what the client is told."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(str(error))
    status = getattr(error, "http_status", None) or getattr(error, "status_code", None)
    if status == 503:
        # an engine's own word for a queue that is full, by either of vLLM's names
        return RequestError(f"the engine is full: {error}", status=503, retry_s=FULL_RETRY_S)
    what = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
    return RequestError(f"the engine failed: {what}", status=500)


def refusal(error: Exception) -> Response:
    """Return the answer to a request that failed."""
    if isinstance(error, ClientLeft):
        # nobody reads it; the number is for logs
        return Response(status_code=499)
    told = as_request_error(error)
    headers = {"Retry-After": str(told.retry_s)} if told.retry_s else {}
    return JSONResponse(told.body(), status_code=told.status, headers=headers)
