"""A vLLM server with Spark inside, as an engine: trees and new weights over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spark.engines.http import HTTPEngine
from spark.engines.weights import State, as_folder


class VLLMEngine(HTTPEngine):
    """The engine protocol against `spark serve MODEL --engine vllm --weight_updates`.

    New weights travel in the request, and through memory on the server, unless there is a folder
    that both sides can reach.

    Example:
        async with VLLMEngine("http://localhost:8000") as engine:
            seq = await engine.open([1, 2, 3])
    """

    def __init__(self, url: str, *, weights: Path | None = None, **how: Any) -> None:
        """`weights`: a folder that the server can read too; `how` is `HTTPEngine`'s."""
        super().__init__(url, **how)
        self._weights = weights

    async def _publish(self, state: State, version: int) -> None:
        """Replace the weights; all KV of the old ones is dropped on the server."""
        if self._weights is None:
            await super()._publish(state, version)
            return
        with as_folder(state, self._weights) as folder:
            told = {"path": str(folder / "model.safetensors"), "version": version}
            answer = await self._wire.post("/v1/weights", json=told)
        self._server_stats = answer["engine"]
