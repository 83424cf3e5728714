"""Stock SGLang with a random model, with or without the plugin, and cases of what was timed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Case
from benchmarks.served import timing
from spark.engines.sglang.fork import RELEASE

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SMALL = {**SHAPE, "hidden_size": 64, "num_hidden_layers": 2}
SETTINGS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "dtype": "float32",
    "mem_fraction_static": 0.1,
    "max_total_tokens": 65536,
    "cuda_graph_backend_decode": "disabled",
    "cuda_graph_backend_prefill": "disabled",
    "sleep_on_idle": True,
    "log_level": "error",
    "random_seed": 0,
}
STOCK = {"branching": "none"}
ENGINES = {
    "spark": {"branching": "spark"},
    "stock": STOCK,
    "disabled": {**STOCK, "disable_radix_cache": True},
}
"""What takes turns: with the plugin, without it, and without SGLang's own prefix cache."""
NAMES = count()


class Engine:
    """Stock SGLang, with or without the plugin."""

    def __init__(
        self,
        model: Path,
        branching: str,
        scheduler: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        """`scheduler`: runs SGLang's scheduler process in the place of its own function."""
        from sglang.srt.entrypoints import engine

        kind = engine.Engine
        if scheduler is not None:
            own = {"run_scheduler_process_func": staticmethod(scheduler)}
            kind = type("Engine", (kind,), own)
        how = {**SETTINGS, **settings, "branching": branching}
        self.engine = kind(model_path=str(model), **how)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.loop.run_until_complete(work)

    async def stream(
        self, tokens: list[int], new: int, rid: str, spark: dict[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        params: dict[str, Any] = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
        if spark:
            params["custom_params"] = {"spark": spark}
        steps = await self.engine.async_generate(
            input_ids=tokens, sampling_params=params, stream=True, rid=rid
        )
        async for step in steps:
            yield step

    async def first(self, tokens: list[int], new: int, spark: Any = None) -> tuple[float, Any]:
        """Return the time of the first token, and the last step."""
        steps = []
        async for step in self.stream(tokens, new, f"child{next(NAMES):06d}", spark):
            steps.append((time.perf_counter(), step))
        return steps[0][0], steps[-1][1]

    def end(self, rid: str) -> None:
        """Stop a request, and let go of the tree that is named after it."""
        from sglang.srt.managers.io_struct import AbortReq

        manager = self.engine.tokenizer_manager
        manager.abort_request(rid=rid)
        manager._dispatch_to_scheduler(AbortReq(rid=RELEASE + rid))


@contextmanager
def running(
    model: Path, page: int, *names: str, scheduler: Callable[..., Any] | None = None
) -> Iterator[dict[str, Engine]]:
    """Run several of `ENGINES`."""
    from spark.serve.sglang.engine import stop

    how = {"page_size": page, "max_total_tokens": 32768}
    started = {name: Engine(model, scheduler=scheduler, **ENGINES[name], **how) for name in names}
    try:
        yield started
    finally:
        for engine in started.values():
            stop(engine.engine)


def save_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a random Qwen3 of `shape` with a byte tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", bos_token_id=None, eos_token_id=None, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocab = {f"t{i}": i for i in range(shape["vocab_size"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


def as_case(
    op: str,
    case: dict[str, Any],
    samples: dict[str, list[float]],
    factor: float,
    unit: str,
    targets: dict[str, float],
    most: float | None = None,
) -> Case:
    """Return medians, spreads and ratios of `samples`."""
    times = {name: timing(values).scaled(factor) for name, values in samples.items() if values}
    ours = times.pop("ours")
    ratio = {name: other.median / max(ours.median, 1e-9) for name, other in times.items()}
    met = all(ratio[name] >= least for name, least in targets.items())
    if most is not None:
        met = ours.max <= most
    judged = bool(targets) or most is not None
    return Case(
        op=op,
        case=case,
        metric={"ms": "time", "tokens": "tokens"}.get(unit, "share"),
        unit=unit,
        ours=ours,
        baselines=times,
        ratio=ratio if unit == "ms" else {},
        target=(targets or {unit: most}) if judged else None,
        met=met if judged else None,
    )
