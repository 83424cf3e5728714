"""SGLang in the caller's process: the engine protocol without a server in between."""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from spark.engines.served import ServedEngine
from spark.engines.weights import State
from spark.serve.inside import Inside
from spark.serve.sglang.backend import SGLangBackend


class EmbeddedSGLang(ServedEngine):
    """The engine protocol on a `sglang.Engine` of this process; its scheduler has one of its own.

    It is what `spark serve --engine sglang` runs, but for HTTP and the limits on what strangers
    ask.

    Example:
        async with EmbeddedSGLang("Qwen/Qwen3-0.6B", page_size=16) as engine:
            seq = await engine.open([1, 2, 3])
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        """Load the model, which takes a while; `settings` are those of `sglang.Engine`.

        Use the engine in one event loop only. Raises ValueError for settings that SGLang, or
        branching, refuses.
        """
        import sglang

        given = {**usual(), "branching": "spark", **settings}
        self._sglang = sglang.Engine(model_path=str(model), **given)
        self._backend = SGLangBackend.of(self._sglang)
        self.server = Inside(self._backend)
        super().__init__(self.server)

    async def __aexit__(self, *error: object) -> None:
        """Release every sequence and end SGLang's processes."""
        try:
            await super().__aexit__(*error)
        finally:
            stop(self._sglang)

    async def _publish(self, state: State, version: int) -> None:
        """Hand the weights over in shared memory; all KV of the old ones is dropped."""
        await self._backend.update_weights(state, version)


def usual() -> dict[str, Any]:
    """Return what must be set on a CPU without AMX: SGLang does not choose it itself."""
    from sglang.srt.utils import cpu_has_amx_support, is_cpu

    if not is_cpu() or cpu_has_amx_support():
        return {}
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "cuda_graph_backend_decode": "disabled",
        "cuda_graph_backend_prefill": "disabled",
        "sleep_on_idle": True,
    }


def stop(engine: Any) -> None:
    """End the processes of one `sglang.Engine`.

    Its own `shutdown` ends everything that this process has started, other engines included.
    """
    atexit.unregister(engine.shutdown)
    manager = engine.tokenizer_manager
    watchdog = manager._subprocess_watchdog
    if watchdog is not None:
        # it would take what follows for a crash, and end this process
        watchdog.stop()
    doomed = []
    for pid in engine.get_all_child_pids():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            doomed += [process, *process.children(recursive=True)]
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, 20)
    for socket in (engine.send_to_rpc, manager.send_to_scheduler, manager.recv_from_detokenizer):
        # collected open, its context may wait for it for ever
        socket.close(linger=0)
