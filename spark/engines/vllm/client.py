"""A vLLM server with Spark inside, as an engine."""

from __future__ import annotations

from spark.engines.http import HTTPEngine


class VLLMEngine(HTTPEngine):
    """The engine protocol against `spark serve MODEL --engine vllm --weight_updates`.

    New weights pass through memory on the server; all KV of the old ones is dropped there.

    Example:
        async with VLLMEngine("http://localhost:8000") as engine:
            seq = await engine.open([1, 2, 3])
    """
