"""Work for a client that may leave: it is stopped, but cleans up in peace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import Request

Emit = Callable[[Any], None]


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

    async def whole(self, http: Request, work: Awaitable[Any]) -> Any:
        """Return what `work` gives; it is stopped, with CancelledError, when the client leaves."""
        task = self._start(work)
        gone = asyncio.create_task(_gone(http))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise asyncio.CancelledError("the client has left")
        finally:
            task.cancel()
            gone.cancel()

    async def pieces(self, work: Callable[[Emit], Awaitable[None]]) -> AsyncGenerator[Any, None]:
        """Yield what `work` emits; it is stopped when the generator is closed or collected."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        end = object()
        task = self._start(work(queue.put_nowait))
        task.add_done_callback(lambda _: queue.put_nowait(end))
        try:
            while (piece := await queue.get()) is not end:
                yield piece
            task.result()
        finally:
            task.cancel()

    def _start(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _gone(http: Request) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
