"""Requests to a Spark server: connections that are kept, patience where it is safe."""

from __future__ import annotations

import asyncio
import json as json_module
import logging
import time
from typing import Any, Protocol

import aiohttp

from spark.engines.base import EngineError, SamplingParams

logger = logging.getLogger(__name__)

FULL = (429, 503)
"""Answers of a server that has done nothing: the same request may pass later."""
FIRST_PAUSE_S, TOLD_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0, 5.0
DROP_PATIENCE_S = 1.0
"""A server forgets trees by itself; who leaves one that has gone need not wait for it."""


class Refused(ValueError):
    """The server does not take the request; `param` is the field that it names."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


class Server(Protocol):
    """What answers: `Wire` over HTTP, or a server's own routes in this process.

    Every method raises EngineError when the engine fails or is out of reach for long.
    """

    url: str
    """Where it is, for messages."""

    async def facts(self) -> dict[str, Any]:
        """Return what the server says of itself: GET /v1/trees."""
        ...

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of POST /v1/completions. Raises Refused when it is not taken."""
        ...

    async def drop(self, tree: str) -> dict[str, Any]:
        """Delete a tree, which may be gone already."""
        ...

    async def close(self) -> None:
        """Give back what it takes to ask."""
        ...


class Wire:
    """One server; every method raises EngineError when it fails or is out of reach for long.

    Requests are repeated when the server was full or the connection broke: a generation depends
    on its seed alone, and one that nobody waits for is stopped by the server.
    """

    def __init__(self, url: str, patience_s: float, timeout_s: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r} must begin with http:// or https://")
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._facts: dict[str, Any] = {}
        self._told = False
        """Of trouble that lasts, once until requests pass again."""

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def facts(self) -> dict[str, Any]:
        """Return what the server says of itself. Raises ValueError when it is no Spark server."""
        if not self._facts:
            status, answer = await self._send("GET", "/v1/trees", {})
            if status != 200 or "vocab_size" not in answer:
                raise ValueError(
                    f"{self.url} is no Spark server: start one with "
                    "`spark serve MODEL --branching spark`"
                )
            self._facts = answer
        return self._facts

    async def post(
        self, path: str, *, passing: tuple[int, ...] = FULL, **content: Any
    ) -> dict[str, Any]:
        """Return the answer. Raises Refused when the server does not take the request.

        `passing`: answers after which the same request is tried again.
        """
        status, answer = await self._send("POST", path, content, passing)
        if status != 200:
            self._raise(status, answer)
        return answer

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a generation request."""
        return await self.post("/v1/completions", json=body)

    async def drop(self, tree: str) -> dict[str, Any]:
        """Delete a tree, which may be gone already."""
        patience_s = min(self._patience_s, DROP_PATIENCE_S)
        status, answer = await self._send("DELETE", f"/v1/trees/{tree}", {}, patience_s=patience_s)
        if status not in (200, 404):
            self._raise(status, answer)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        content: Any,
        passing: tuple[int, ...] = FULL,
        patience_s: float | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Return status and JSON; tries again while that is safe and patience lasts."""
        patience_s = self._patience_s if patience_s is None else patience_s
        end, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
        while True:
            try:
                status, answer = await self._once(method, path, content)
                if status not in passing:
                    self._told = False
                    return status, answer
                trouble = _message(answer)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                told = str(error) or type(error).__name__
                trouble = f"{told}; does `spark serve MODEL` run there?"
            except TimeoutError:
                raise EngineError(f"{self.url} took over {self._timeout.total} s") from None
            if time.monotonic() + pause > end:
                raise EngineError(f"{self.url}: {trouble} (for {patience_s} s)")
            if pause > TOLD_PAUSE_S and not self._told:
                self._told = True
                logger.warning("%s: %s; trying for %s s", self.url, trouble, patience_s)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _once(self, method: str, path: str, content: Any) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            # how many requests are in flight is the caller's to say, and the server's to refuse
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        async with self._session.request(method, self.url + path, **content) as answer:
            text = await answer.text()
        try:
            told = json_module.loads(text)
        except ValueError:
            told = None
        return answer.status, told if isinstance(told, dict) else {"error": text[:200]}

    def _raise(self, status: int, answer: dict[str, Any]) -> None:
        error = answer.get("error")
        param = error.get("param") if isinstance(error, dict) else None
        if status < 500:
            raise Refused(f"{self.url}: {_message(answer)}", param)
        raise EngineError(f"{self.url}: {_message(answer)}")


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message") if isinstance(error, dict) else error or answer)


def request_fields(params: SamplingParams) -> dict[str, Any]:
    """Return the fields of the body and of its `branching` object that stand for `params`.

    Raises ValueError for a constraint that only exists in this process.
    """
    branching: dict[str, Any] = {"policy": "none"}
    if params.constraint is not None:
        wire = getattr(params.constraint, "wire", None)
        if wire is None:
            raise ValueError(
                f"constraint {type(params.constraint).__name__} cannot be sent to a server: it "
                "needs a method wire(), as spark.rollout's action constraint has"
            )
        branching["constraint"] = wire()
    if params.watch is not None:
        branching["pause"] = {
            "tags": list(params.watch.tags),
            "entropy_above": params.watch.entropy_above,
        }
    body = {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "seed": params.seed,
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        # the caller names every token that ends a sample
        "ignore_eos": True,
    }
    return {"body": body, "branching": branching}
