"""A vLLM server with Spark inside, as an engine: trees and new weights over HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spark.engines.http import HTTPEngine


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

    async def _publish(self, state: Mapping[str, torch.Tensor], version: int) -> None:
        """Replace the weights; all KV of the old ones is dropped on the server."""
        if self._weights is None:
            await super()._publish(state, version)
            return
        # a tensor that several names share is saved under each of them
        whole = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        with tempfile.TemporaryDirectory(prefix="spark-weights-", dir=self._weights) as folder:
            path = Path(folder) / "model.safetensors"
            save_file(whole, path, {"format": "pt"})
            told = {"path": str(path), "version": version}
            answer = await self._wire.post("/v1/weights", json=told)
        self._server_stats = answer["engine"]
