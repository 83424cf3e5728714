"""Work for a client that may leave: it is stopped, but cleans up in peace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Request

Emit = Callable[[Any], None]


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Jobs:
    """Runs each request in a task of its own.

    A web framework cancels a handler, and everything it awaits while cleaning up, when its client
    leaves; leaves that run in an engine must be stopped properly all the same.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """Wait for what is being cleaned up."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def whole(self, http: Request, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what `work` gives. Raises ClientLeft, and stops it, when the client leaves."""
        task = self._start(http, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _stop(task)
            raise ClientLeft from None

    async def pieces(
        self, http: Request, work: Callable[[Emit], Coroutine[Any, Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """Yield what `work` emits; it is stopped when the client leaves.

        Raises what `work` raises, and ClientLeft.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue()
        end = object()
        task = self._start(http, work(queue.put_nowait))
        task.add_done_callback(lambda _: queue.put_nowait(end))
        try:
            while (piece := await queue.get()) is not end:
                yield piece
            if task.cancelled():
                raise ClientLeft
            task.result()
        finally:
            _stop(task)

    def _start(self, http: Request, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` until it is done or the client has left."""
        task = asyncio.create_task(work)
        watch = asyncio.create_task(_gone(http))
        watch.add_done_callback(lambda _: _stop(task))
        task.add_done_callback(lambda _: watch.cancel())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel `task` once: a second time would cut its cleaning up short."""
    if not task.done() and not task.cancelling():
        task.cancel()


async def _gone(http: Request) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
