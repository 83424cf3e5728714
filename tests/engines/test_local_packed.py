"""Packed weights: the same products, and never those of weights that have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from spark.engines.base import SamplingParams
from spark.engines.local import LocalEngine
from spark.engines.local.packed import WORK, PackedWeights, linear, supported

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_any_number_of_rows(dtype: torch.dtype, bias: bool) -> None:
    layer = nn.Linear(512, 1024, bias=bias, dtype=dtype)
    weights = PackedWeights([layer, nn.Linear(8, 8, dtype=torch.float64)])
    if not supported(dtype):
        assert weights.tensors() == []
        return
    (packed,) = weights.tensors()
    with torch.inference_mode():
        for shape in [(0, 512), (1, 512), (3, 512), (2, 33, 512)]:
            x = torch.randn(shape, dtype=dtype)
            want = layer(x)
            with weights.used([packed]):
                got = layer(x)
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            straight = linear(x, layer.weight, packed, layer.bias, 1)
            torch.testing.assert_close(straight, want, rtol=tolerance, atol=tolerance)
    assert "forward" not in layer.__dict__


def test_what_is_not_packed() -> None:
    class Own(nn.Linear):
        pass

    small, own, replaced = nn.Linear(16, 16), Own(512, 1024), nn.Linear(512, 1024)
    replaced.__dict__["forward"] = lambda x: x
    double = nn.Linear(512, 1024, dtype=torch.float64)
    with torch.inference_mode():
        inference = nn.Linear(512, 1024)
    assert PackedWeights([small, own, replaced, double, inference]).tensors() == []
    assert WORK[torch.float32] > 16 * 16


def wide_model(seed: int) -> PreTrainedModel:
    """One layer whose matrices are large enough to be packed."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=400,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config).eval()


def plain(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=5.0)


def fused(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)


def step(model: PreTrainedModel, make: Callable[..., torch.optim.Optimizer]) -> None:
    """Change the weights in place, as an optimiser does."""
    optimizer = make(model)
    model(torch.tensor([PROMPT])).logits.square().sum().backward()
    optimizer.step()


async def greedy(engine: LocalEngine) -> list[int]:
    seq = await engine.open(PROMPT)
    sample = await engine.sample(seq, SamplingParams(max_tokens=12, temperature=0))
    await engine.release(seq)
    return sample.tokens


def generated(model: PreTrainedModel) -> list[int]:
    """What transformers makes of the same prompt."""
    tokens = torch.tensor([PROMPT])
    out = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)
    return out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("make", [plain, fused])
def test_weights_that_change_under_the_engine(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    async def main() -> None:
        model, other = wide_model(0), wide_model(1)
        async with LocalEngine(model, num_blocks=16, pack_weights=False) as plain:
            first = await greedy(plain)
        async with LocalEngine(model, num_blocks=16) as engine:
            assert await greedy(engine) == first == generated(model)
            step(model, make)
            second = await greedy(engine)
            assert second == generated(model) != first
            await engine.update_weights(other.state_dict(), 1)
            assert await greedy(engine) == generated(other) != second

    asyncio.run(main())
