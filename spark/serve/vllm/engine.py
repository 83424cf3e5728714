"""vLLM in the caller's process: the engine protocol without a server in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from spark.engines.served import ServedEngine
from spark.engines.vllm.plugin import register
from spark.engines.weights import State, as_folder
from spark.serve.inside import Inside
from spark.serve.vllm.backend import VLLMBackend


class EmbeddedVLLM(ServedEngine):
    """The engine protocol on an AsyncLLM of this process; vLLM's core has one of its own.

    It is what `spark serve --engine vllm` runs, but for HTTP and the limits on what strangers ask.

    Example:
        async with EmbeddedVLLM("Qwen/Qwen3-0.6B", max_model_len=4096) as engine:
            seq = await engine.open([1, 2, 3])
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        """Load the model, which takes a while; `settings` are those of `vllm.AsyncEngineArgs`.

        Use the engine in one event loop only. Raises ValueError for settings that vLLM, or
        branching, refuses.
        """
        # the caller may have threads, which a forked core would wait for
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        register()
        usual = {"enforce_eager": current_platform.is_cpu(), "disable_log_stats": True}
        told = dict(settings.pop("additional_config", {}))
        given = {**usual, **settings, "additional_config": {"branching": "spark", **told}}
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(str(model), **given))
        self._backend = VLLMBackend.of(self._llm, str(model))
        self.server = Inside(self._backend)
        super().__init__(self.server)

    async def __aexit__(self, *error: object) -> None:
        """Release every sequence and end vLLM's processes."""
        try:
            await super().__aexit__(*error)
        finally:
            self._llm.shutdown()

    async def _publish(self, state: State, version: int) -> None:
        """Let vLLM load from memory that looks like a folder, where this machine has it."""
        shapes = {name: tensor.shape for name, tensor in state.items()}
        self._backend.shapes.check(shapes, foreign=True)
        with as_folder(state) as folder:
            async with self._backend.paused():
                await self.server.trees.drop_all()
                await self._backend.update_weights(str(folder), version)
