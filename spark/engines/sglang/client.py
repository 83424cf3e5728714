"""SGLang over HTTP: trees by Spark's routes in its server, new weights by these or its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spark.engines.http import HTTPEngine
from spark.engines.weights import State, as_folder


class SGLangEngine(HTTPEngine):
    """The engine protocol against `spark serve MODEL --engine sglang`.

    New weights travel in the request and go on through memory, unless there is a folder that both
    sides can reach.

    Example:
        async with SGLangEngine("http://localhost:30000") as engine:
            seq = await engine.open([1, 2, 3])
    """

    def __init__(self, url: str, *, weights: Path | None = None, **how: Any) -> None:
        """`weights`: a folder that the server can read too; `how` is `HTTPEngine`'s."""
        super().__init__(url, **how)
        self._weights = weights

    async def _publish(self, state: State, version: int) -> None:
        """Replace the weights; running requests pause and go on with the new ones.

        Their KV, and that of every tree, is dropped: it came from the old weights.
        """
        if self._weights is None:
            await super()._publish(state, version)
            return
        with as_folder(state, self._weights) as folder:
            await self._wire.post("/pause_generation", json={"mode": "retract"})
            try:
                answer = await self._wire.post(
                    "/update_weights_from_disk",
                    json={"model_path": str(folder), "weight_version": str(version)},
                )
            finally:
                await self._wire.post("/continue_generation", json={})
        if not answer["success"]:
            raise ValueError(f"{self._wire.url} did not take the weights: {answer['message']}")
