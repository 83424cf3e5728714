"""SGLang over HTTP: trees by Spark's routes in its server, new weights by SGLang's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spark.engines.http import HTTPEngine

MEMORY = Path("/dev/shm")


class SGLangEngine(HTTPEngine):
    """The engine protocol against `spark serve MODEL --engine sglang`.

    Example:
        async with SGLangEngine("http://localhost:30000") as engine:
            seq = await engine.open([1, 2, 3])
    """

    def __init__(self, url: str, *, weights: Path | None = None, **how: Any) -> None:
        """`weights`: a folder that the server can read too, where new weights pass through.

        Default: memory that looks like a folder where this machine has it, else the temporary
        folder. `how` is `HTTPEngine`'s.
        """
        super().__init__(url, **how)
        self._weights = weights or (MEMORY if MEMORY.is_dir() else None)

    async def _publish(self, state: Mapping[str, torch.Tensor], version: int) -> None:
        """Replace the weights; running requests pause and go on with the new ones.

        Their KV, and that of every tree, is dropped: it came from the old weights.
        """
        # a tensor that several names share is saved under each of them
        whole = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        with tempfile.TemporaryDirectory(prefix="spark-weights-", dir=self._weights) as folder:
            save_file(whole, Path(folder) / "model.safetensors", {"format": "pt"})
            await self._wire.post("/pause_generation", json={"mode": "retract"})
            try:
                answer = await self._wire.post(
                    "/update_weights_from_disk",
                    json={"model_path": folder, "weight_version": str(version)},
                )
            finally:
                await self._wire.post("/continue_generation", json={})
        if not answer["success"]:
            raise ValueError(f"{self._wire.url} did not take the weights: {answer['message']}")
