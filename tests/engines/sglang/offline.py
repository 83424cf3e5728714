"""Stock SGLang in this process, on the CPU, with the plugin on; and what transformers says."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tiny_models import greedy, tiny, tokenizer

from spark.engines.sglang.fork import RELEASE
from spark.serve.sglang.engine import stop

CONTEXT = 4096
SETTINGS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "dtype": "float32",
    "mem_fraction_static": 0.1,
    "max_total_tokens": 16384,
    "cuda_graph_backend_decode": "disabled",
    "cuda_graph_backend_prefill": "disabled",
    "sleep_on_idle": True,
    "log_level": "error",
    "random_seed": 0,
}


def save_model(family: str, folder: Path) -> Path:
    """Write the random tiny model of `family` for SGLang to load, with room for long parents."""
    tiny(family).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    tokenizer().save_pretrained(folder)
    return folder


@dataclass
class Output:
    """What one request has returned so far."""

    rid: str
    tokens: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        reason = self.meta["finish_reason"]
        return reason["message"] if reason and reason["type"] == "abort" else None

    def scores(self, name: str) -> list[float]:
        return self.meta[f"spark_{name}"]


class Offline:
    """`sgl.Engine` and a few shorthands."""

    def __init__(self, model: Path, family: str, **settings: Any):
        import sglang

        self.family = family
        self.page_size = settings.get("page_size", 1)
        ranks = settings.get("tp_size", 1) * settings.get("dp_size", 1)
        # on a machine with one memory node SGLang wants to be told each rank's cores
        cores = "|".join(map(str, range(ranks))) if ranks > 1 else ""
        how = {**SETTINGS, "branching": "spark", **settings}
        with patch.dict(os.environ, {"SGLANG_CPU_OMP_THREADS_BIND": cores} if cores else {}):
            self.engine = sglang.Engine(model_path=str(model), **how)
        self.manager = self.engine.tokenizer_manager
        self._names = itertools.count()

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self.engine)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.loop.run_until_complete(asyncio.wait_for(work, 300))

    def greedy(self, tokens: list[int], new: int) -> list[int]:
        """Return what transformers continues with."""
        return greedy(self.family, tokens, new)

    async def stream(
        self,
        prompt: list[int],
        new: int,
        rid: str | None = None,
        rank: int | None = None,
        **how: Any,
    ) -> AsyncIterator[Output]:
        """Yield the same growing output after every step; other keywords are SGLang's own."""
        spark = {name: how.pop(name) for name in SPARK if name in how}
        # SGLang aborts by prefix
        rid = rid or f"r{next(self._names):06d}"
        params = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True, **how}
        if spark:
            params["custom_params"] = {"spark": spark}
        output = Output(rid)
        steps = await self.engine.async_generate(
            input_ids=prompt, sampling_params=params, stream=True, rid=rid, routed_dp_rank=rank
        )
        async for step in steps:
            output.tokens, output.meta = step["output_ids"], step["meta_info"]
            yield output

    async def generate(self, prompt: list[int], new: int, **how: Any) -> Output:
        """Return the whole output."""
        return [output async for output in self.stream(prompt, new, **how)][-1]

    async def fork(
        self, parent: Output, prompt: list[int], at: int, new: int, **how: Any
    ) -> Output:
        """Return the child that shares the prompt and `at` tokens of `parent` and samples `new`."""
        output = parent.tokens[:at]
        return await self.generate(
            prompt,
            at + new,
            parent=parent.rid,
            at=len(prompt) + at,
            output=output,
            **how,
        )

    def release(self, tree: str) -> None:
        """Drop the claims of `tree`."""
        from sglang.srt.managers.io_struct import AbortReq

        self.manager._dispatch_to_scheduler(AbortReq(rid=RELEASE + tree))

    def abort(self, output: Output) -> None:
        """Stop a request."""
        self.manager.abort_request(rid=output.rid)

    async def flush(self) -> bool:
        """Empty the cache; only an idle engine can."""
        for _ in range(100):
            if (await self.manager.flush_cache()).success:
                return True
            await asyncio.sleep(0.05)
        return False

    async def state(self) -> dict[str, Any]:
        """Return the scheduler's own report on itself."""
        return (await self.manager.get_internal_state())[0]

    def check_clean(self) -> None:
        """SGLang's leak check runs whenever it is idle, and a leak would have ended it."""
        assert self.run(self.flush())
        prompt = [3, 5, 8]
        assert self.run(self.generate(prompt, 4)).tokens == self.greedy(prompt, 4)


SPARK = ("tree", "parent", "at", "output", "score", "choices")
