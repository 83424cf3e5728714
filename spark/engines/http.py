"""An engine behind HTTP: any Spark server, whatever runs the model there."""

from __future__ import annotations

from safetensors.torch import save

from spark.engines.served import ServedEngine
from spark.engines.weights import State, whole
from spark.engines.wire import Wire


class HTTPEngine(ServedEngine):
    """The engine protocol over HTTP.

    Example:
        async with HTTPEngine("http://localhost:8000") as engine:
            seq = await engine.open([1, 2, 3])
            out = await engine.sample(seq, SamplingParams(max_tokens=16, seed=7))
    """

    def __init__(self, url: str, *, patience_s: float = 120.0, timeout_s: float = 600.0) -> None:
        """Nothing is sent before the first call.

        Args:
            url: where the server listens, e.g. "http://localhost:8000".
            patience_s: seconds to go on trying while the server is full or cannot be reached.
            timeout_s: seconds that one request may take.
        """
        self._wire = Wire(url, patience_s, timeout_s)
        super().__init__(self._wire)

    async def _publish(self, state: State, version: int) -> None:
        """Send the weights; engines that have routes of their own for it override this."""
        answer = await self._wire.post(f"/v1/weights?version={version}", data=save(whole(state)))
        self._server_stats = answer["engine"]
