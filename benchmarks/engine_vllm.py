"""Decode throughput of the embedded engine against vLLM's, each in a process with one thread.

Runs in the vLLM environment: `.venv-vllm/bin/python -m benchmarks --suite engine_vllm`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Case, interleave
from benchmarks.vllm_cost import apart
from benchmarks.vllm_engine import ENVIRONMENT, prompt, saved
from spark import LocalEngine
from spark.engines.base import SamplingParams


def run(quick: bool = False) -> list[Case]:
    """Return one case per model and number of sequences, in float32, prefill included."""
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = ("1M",) if quick else ("1M", "27M")
        return [case for size in sizes for case in beside(saved(Path(folder), size), quick)]


def beside(model: Path, quick: bool) -> list[Case]:
    """Time both engines in turns on greedy continuations, which must be the same."""
    new, rounds = (16, 3) if quick else (64, 7)
    mine = LocalEngine(str(model), num_blocks=1024)
    cases = []
    with apart(model, None) as vllm:
        for batch in (4,) if quick else (1, 16, 32):
            ways = {
                "ours": partial(decode, mine, batch, new),
                "vllm": partial(vllm, True, batch, new),
            }
            assert ways["ours"]() == ways["vllm"](), "the engines continue differently"
            times = interleave(ways, rounds=rounds, warmup=1)
            ours, theirs = (times[name].rate(batch * new) for name in ways)
            ratio = ours.median / theirs.median
            cases.append(
                Case(
                    op="beside_vllm",
                    case={"model": model.name, "dtype": "float32", "sequences": batch},
                    metric="throughput",
                    unit="tokens/s",
                    ours=ours,
                    baselines={"vllm": theirs},
                    ratio={"vllm": ratio},
                    target={"vllm": 1.0},
                    met=ratio >= 1.0,
                )
            )
    return cases


def decode(engine: LocalEngine, batch: int, new: int) -> list[list[int]]:
    """Return the continuations of the prompts that `benchmarks.vllm_cost.decode` continues."""
    params = SamplingParams(max_tokens=new, temperature=0.0)

    async def one(index: int) -> list[int]:
        seq = await engine.open(prompt(8 + index))
        out = await engine.sample(seq, params)
        await engine.release(seq)
        return out.tokens

    async def main() -> list[list[int]]:
        return await asyncio.gather(*map(one, range(batch)))

    return asyncio.run(main())
