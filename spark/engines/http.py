"""An engine behind HTTP: any Spark server, whatever runs the model there."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from spark.engines.served import ServedEngine
from spark.engines.weights import State, as_folder, whole
from spark.engines.wire import FULL, Wire

PASSING = (*FULL, 409)
"""Answers to new weights that come too early: 409 = requests are in progress."""


class HTTPEngine(ServedEngine):
    """The engine protocol over HTTP.

    Example:
        async with HTTPEngine("http://localhost:8000") as engine:
            seq = await engine.open([1, 2, 3])
            out = await engine.sample(seq, SamplingParams(max_tokens=16, seed=7))
    """

    def __init__(
        self,
        url: str,
        *,
        weights: Path | None = None,
        patience_s: float = 120.0,
        timeout_s: float = 600.0,
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            url: where the server listens, e.g. "http://localhost:8000".
            weights: a folder that the server can read too, where new weights pass through; None =
                they travel in the request.
            patience_s: seconds to go on trying while the server is full or cannot be reached.
            timeout_s: seconds that one request may take.
        """
        self._wire, self._weights = Wire(url, patience_s, timeout_s), weights
        super().__init__(self._wire)

    async def _publish(self, state: State, version: int) -> None:
        if self._weights is None:
            path = f"/v1/weights?version={version}"
            told = await self._wire.post(path, passing=PASSING, data=save(whole(state)))
            self._server_stats = told["engine"]
        else:
            with as_folder(state, self._weights) as folder:
                await self._load(folder, version)

    async def _load(self, folder: Path, version: int) -> None:
        """Let the server load `folder`; engines with a route of their own for it override this."""
        path = str(folder / "model.safetensors")
        told = await self._wire.post(
            "/v1/weights", passing=PASSING, json={"path": path, "version": version}
        )
        self._server_stats = told["engine"]
