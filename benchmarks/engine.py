"""Decode throughput of the embedded engine against transformers' `generate` and its batching.

The floor is the time of the model's matrix products alone, by the faster of torch's two kernels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    Qwen3Config,
)

from benchmarks.harness import Case, Run, interleave
from spark import LocalEngine
from spark.engines.base import SamplingParams
from spark.engines.local.packed import supported

VOCAB, PROMPT, NEW = 2048, 32, 64
SIZES = {
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2},
    "27M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
}
TARGETS = {"generate": 1.0, "continuous": 5.0}
Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def run(quick: bool = False) -> list[Case]:
    """Return one case per model size, dtype and number of sequences."""
    rounds, new = (3, 16) if quick else (5, NEW)
    return [
        decode(size, dtype, batch, rounds, new)
        for size in SIZES
        for dtype in (torch.bfloat16, torch.float32)
        for batch in ((16,) if quick else (1, 16, 32, 64))
    ]


def decode(size: str, dtype: torch.dtype, batch: int, rounds: int, new: int) -> Case:
    """Time `batch` greedy continuations of `new` tokens from start to end, prefill included."""
    model = random_model(size, dtype)
    ids = torch.randint(VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    ours = partial(embedded, LocalEngine(model, num_blocks=1024), ids, new)
    static = partial(generate, model, ids, new)
    assert ours() == static() or dtype != torch.float32, "fp32 tokens differ from generate's"
    turns = {"ours": ours, "generate": static}
    turns |= {f"floor {name}": run for name, run in products(model, batch, new).items()}
    times = interleave(turns, rounds=rounds, warmup=1)
    least = min(times.pop(name).median for name in list(times) if name.startswith("floor"))
    # many seconds a call: two rounds are enough for a factor of five
    slow = partial(continuous, model, ids, new)
    times |= interleave({"continuous": slow}, rounds=2, warmup=0)
    rates = {name: timing.rate(batch * new) for name, timing in times.items()}
    mine, floor = rates.pop("ours"), batch * new / least
    ratio = {name: mine.median / other.median for name, other in rates.items()}
    return Case(
        op="decode",
        case={"model": size, "dtype": str(dtype).removeprefix("torch."), "sequences": batch},
        metric="throughput",
        unit="tokens/s",
        ours=mine,
        baselines=rates,
        ratio=ratio,
        floor=floor,
        fraction_of_floor=mine.median / floor,
        target=TARGETS,
        met=all(ratio[name] >= goal for name, goal in TARGETS.items()),
    )


def products(model: PreTrainedModel, batch: int, new: int) -> dict[str, Run]:
    """Return runs of the linear layers alone, for a prefill and `new` - 1 further tokens each.

    One by torch's kernel, one by oneDNN's for weights that were packed before, where there is one.
    """
    head = model.get_output_embeddings()
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]

    def inputs(rows: int) -> list[torch.Tensor]:
        # of a prompt only the last token needs logits
        return [
            torch.zeros(batch if x is head else rows, x.in_features, dtype=dtype) for x in layers
        ]

    def run(kernel: Kernel, weights: list[torch.Tensor]) -> None:
        with torch.inference_mode():
            for step in [prefill, *[decode] * (new - 1)]:
                for x, weight in zip(step, weights, strict=True):
                    kernel(x, weight)

    dtype = head.weight.dtype
    prefill, decode = inputs(batch * PROMPT), inputs(batch)
    plain = [layer.weight for layer in layers]
    runs = {"torch": partial(run, torch.nn.functional.linear, plain)}
    if supported(dtype):
        packed = [torch.ops.mkldnn._reorder_linear_weight(w.detach(), None) for w in plain]
        pointwise = torch.ops.mkldnn._linear_pointwise
        runs["packed"] = partial(run, lambda x, w: pointwise(x, w, None, "none", [], ""), packed)
    return runs


def random_model(size: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return an untrained Qwen3 that never ends a sequence by itself."""
    torch.manual_seed(0)
    hidden = SIZES[size]["hidden_size"]
    config = Qwen3Config(
        vocab_size=VOCAB,
        intermediate_size=3 * hidden,
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        **SIZES[size],
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()


def embedded(engine: LocalEngine, ids: torch.Tensor, new: int) -> list[list[int]]:
    """Return the continuations by the embedded engine, every sequence a request of its own."""
    params = SamplingParams(max_tokens=new, temperature=0.0)

    async def one(prompt: list[int]) -> list[int]:
        seq = await engine.open(prompt)
        out = await engine.sample(seq, params)
        await engine.release(seq)
        return out.tokens

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(one(prompt) for prompt in ids.tolist()))

    return asyncio.run(main())


def generate(model: PreTrainedModel, ids: torch.Tensor, new: int) -> list[list[int]]:
    """Return the continuations by transformers' `generate` on one static batch."""
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
    return out[:, ids.shape[1] :].tolist()


def continuous(model: PreTrainedModel, ids: torch.Tensor, new: int) -> list[list[int]]:
    """Return the continuations by transformers' continuous batching."""
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1)
    pool = ContinuousBatchingConfig(block_size=16, num_blocks=1024, max_batch_tokens=2048)
    outs = model.generate_batch(
        ids.tolist(), generation_config=settings, continuous_batching_config=pool
    )
    found = [out.generated_tokens for out in outs.values()]
    # it returns what it has when its thread dies
    assert [len(tokens) for tokens in found] == [new] * len(ids), "tokens are missing"
    return found
