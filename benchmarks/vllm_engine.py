"""A vLLM engine with a small random model in this process, stepped by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import VOCAB, random_model

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def saved(folder: Path, size: str) -> Path:
    """Write a random model of `size` where it is not there yet."""
    target = folder / size
    if not target.exists():
        model = random_model(size, torch.float32)
        model.config.max_position_embeddings = 8192
        model.save_pretrained(target)
    return target


@contextmanager
def engine(model: Path, *, branching: dict[str, Any], block: int, length: int) -> Iterator[Any]:
    """Run one engine in this process."""
    from spark.engines.vllm.stepper import Stepper

    made = Stepper(
        str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        block_size=block,
        max_model_len=length,
        num_gpu_blocks_override=max(64, 20 * length // block),
        max_num_seqs=64,
        additional_config=branching,
        disable_log_stats=True,
    )
    try:
        yield made
    finally:
        made.close()


def prompt(length: int) -> list[int]:
    """Return random token ids."""
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(1)).tolist()
