"""Calls that wait, each in a thread of its own beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


async def aside(call: Callable[[], Any], unwanted: Callable[[Any], None] | None = None) -> Any:
    """Return what `call` returns, or raise what it raises, without holding up the event loop.

    The thread does not keep the program from ending. `unwanted` gets a result that nobody waits
    for any more, however close to its arrival the caller was cancelled.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if error is not None and not future.cancelled():
            future.set_exception(error)
        elif error is None and not future.cancelled():
            future.set_result(result)
        elif error is None and unwanted is not None:
            unwanted(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        came = not future.cancelled() and future.exception() is None
        if came and unwanted is not None:
            unwanted(future.result())
        raise
