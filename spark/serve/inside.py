"""A server's trees for a caller in the same process: no HTTP, no JSON."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from spark.engines.base import EngineError
from spark.engines.wire import Refused
from spark.serve.backend import Backend
from spark.serve.chat import ChatFormat
from spark.serve.limits import Limits
from spark.serve.metrics import Metrics
from spark.serve.protocol import RequestError
from spark.serve.routes import TreeRoutes, as_request_error
from spark.serve.trees import Trees

NO_LIMIT = 2**62


class Inside:
    """What `ServedEngine` asks, answered by the routes of a server that does not listen.

    Nothing is refused for want of room, and no tree expires: the only client is the caller.
    """

    url = "the engine in this process"

    def __init__(self, backend: Backend) -> None:
        limits = Limits(max_running_leaves=NO_LIMIT, max_trees=NO_LIMIT)
        self.trees = Trees(backend, limits, Metrics(CollectorRegistry()))
        self._routes = TreeRoutes(self.trees, ChatFormat(backend.tokenizer))

    async def facts(self) -> dict[str, Any]:
        """Return what the server would say of itself."""
        return self._routes.describe()

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion. Raises Refused, or EngineError."""
        try:
            return await self._routes.complete(body)
        except Exception as error:
            # as over HTTP, it is the status that says whose fault it was
            told = as_request_error(error)
            raise (
                Refused(str(told), told.param) if told.status < 500 else EngineError(str(told))
            ) from error

    async def drop(self, tree: str) -> dict[str, Any]:
        """Delete a tree, which may be gone already."""
        try:
            await self.trees.delete(tree)
        except RequestError:
            return {}
        return {"engine": dict(self.trees.backend.stats())}

    async def close(self) -> None:
        """Do nothing: the engine is closed by whoever made it."""
