"""The embedded engine's decode rate against reading the weights once a step, and transformers'."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from benchmarks.engine import continuous, embedded
from benchmarks.gpu.device import Measurement, floor
from benchmarks.harness import Case, interleave
from spark import LocalEngine

PROMPT = 32
SIZES = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151_936),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151_936),
    "tiny": (64, 128, 2, 4, 2, 2048),
}


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return one case a model and number of sequences."""
    if quick:
        return [partial(decode, "tiny", 2, 4, device, quick)]
    models = [name for name in SIZES if name != "tiny"]
    shapes = [(name, batch, 128) for name in models for batch in (1, 16, 64)]
    return [partial(decode, *shape, device, quick) for shape in shapes]


def random_model(name: str, device: torch.device) -> PreTrainedModel:
    """Return an untrained Qwen2 of this shape in bfloat16 that never ends a sequence by itself."""
    torch.manual_seed(0)
    hidden, inner, layers, heads, kv_heads, vocab = SIZES[name]
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(device, torch.bfloat16).eval()


def decode(name: str, batch: int, new: int, device: torch.device, quick: bool) -> list[Case]:
    """Time `batch` greedy continuations of `new` tokens, prefill included."""
    model = random_model(name, device)
    vocab = SIZES[name][-1]
    ids = torch.randint(vocab, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    ours = partial(embedded, LocalEngine(model, num_blocks=1024), ids, new)
    slow = partial(continuous, model, ids.to(device), new)
    # captures the graphs of this batch size
    assert all(len(tokens) == new for tokens in ours()), "tokens are missing"
    times = interleave({"ours": ours}, rounds=3 if quick else 7, warmup=1)
    # seconds a call, of which the first is not counted, and minutes on a CPU
    if not quick:
        times |= interleave({"continuous": slow}, rounds=1, warmup=0)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    bound = batch / floor(weights, device, quick)
    rates = {key: time.rate(batch * new) for key, time in times.items()}
    mine = rates.pop("ours")
    ratio = {key: mine.median / rate.median for key, rate in rates.items()}
    case = Case(
        op="decode",
        case={"model": name, "dtype": "bfloat16", "sequences": batch, "device": device.type},
        metric="throughput",
        unit="tokens/s",
        ours=mine,
        baselines=rates,
        ratio=ratio,
        floor=bound,
        fraction_of_floor=mine.median / bound,
        target={"continuous": 1.0} if ratio else None,
        met=ratio["continuous"] >= 1 if ratio else None,
    )
    return [case]
