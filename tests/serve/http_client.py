"""A client without any knowledge of Spark: JSON over HTTP, as anybody would write it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp


class Client:
    """Talks to one server; use as an async context manager."""

    def __init__(self, url: str, *, reuse: bool = True) -> None:
        """`reuse`: connections; without, every request has one of its own, as strangers have."""
        self.url, self.reuse = url, reuse

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=120)
        # servers drop a connection that is idle for five seconds: a test that computes for longer
        # must not take it up again
        keep = {"keepalive_timeout": 2} if self.reuse else {"force_close": True}
        connector = aiohttp.TCPConnector(**keep)
        self.session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, body: Any, path: str = "/v1/completions") -> tuple[int, Any]:
        """Return status and JSON of a POST; a `str` or `bytes` body is sent as it is."""
        raw = body if isinstance(body, str | bytes) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.url + path, data=raw, headers=headers) as answer:
            return answer.status, await answer.json()

    async def good(self, body: Any, path: str = "/v1/completions") -> Any:
        status, answer = await self.ask(body, path)
        assert status == 200, answer
        return answer

    async def stream(self, body: Any, path: str = "/v1/completions") -> list[Any]:
        """Return the events of a stream, which must end as OpenAI's do."""
        body = body | {"stream": True}
        async with self.session.post(self.url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            text = await answer.text()
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def delete(self, tree: str) -> int:
        async with self.session.delete(f"{self.url}/v1/trees/{tree}") as answer:
            await answer.read()
            return answer.status

    async def metrics(self) -> dict[str, float]:
        """Return sample -> value of the `spark:` metrics."""
        async with self.session.get(self.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("spark:"))
        return {name: float(value) for name, value in pairs}
