"""SGLang over HTTP: trees by Spark's routes in its server, new weights by these or its own."""

from __future__ import annotations

from pathlib import Path

from spark.engines.http import HTTPEngine


class SGLangEngine(HTTPEngine):
    """The engine protocol against `spark serve MODEL --engine sglang`.

    Running requests pause while weights are replaced, and go on with the new ones. Their KV, and
    that of every tree, is dropped: it came from the old weights.

    Example:
        async with SGLangEngine("http://localhost:30000") as engine:
            seq = await engine.open([1, 2, 3])
    """

    async def _load(self, folder: Path, version: int) -> None:
        """Load from the folder by SGLang's own route, which every replica obeys."""
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
