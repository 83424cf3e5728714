"""Which kinds of decoders run embedded, token for token, and which are refused, and why."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, prompt
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from spark import LocalEngine
from spark.engines.base import SamplingParams

NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **NO_ENDS,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
TWO = {"num_hidden_layers": 2}
WINDOWS = TWO | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, **NO_ENDS}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = SIZES | {
    **ROUTED,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
LONG = {"rope_type": "longrope", "rope_theta": 1e4}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "factor": 4.0}

RUN: dict[str, dict[str, Any]] = {
    "apertus": GROUPED,
    "arcee": GROUPED,
    "bert": SIZES | {"is_decoder": True},
    "biogpt": SIZES,
    "cohere": GROUPED,
    "cohere2": GROUPED | WINDOWS,
    "ctrl": GPT | {"dff": 48},
    "ernie4_5": GROUPED,
    "exaone4": GROUPED | WINDOWS,
    "gemma3_text": WIDE | WINDOWS,
    "glm": WIDE,
    "glm4": WIDE,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "granite": GROUPED | {"logits_scaling": 2.0, "attention_multiplier": 0.3},
    "granitemoe": GROUPED | LOCAL_EXPERTS,
    "helium": WIDE,
    "hunyuan_v1_dense": WIDE,
    "mixtral": GROUPED | LOCAL_EXPERTS,
    "nemotron": GROUPED,
    "olmo": SIZES,
    "olmo2": SIZES,
    "olmo3": SIZES | WINDOWS,
    "olmoe": GROUPED | EXPERTS,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "persimmon": SIZES,
    "phi": SIZES,
    "phi3": GROUPED | {"rope_parameters": LONG, "original_max_position_embeddings": 24},
    "phimoe": GROUPED | LOCAL_EXPERTS,
    "qwen2_moe": GROUPED | EXPERTS | {"moe_intermediate_size": 16},
    "qwen3_moe": WIDE | EXPERTS | {"moe_intermediate_size": 16},
    "seed_oss": WIDE,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
}
"""Those of `tiny_models.FAMILIES` run besides."""

INTERFACE = "transformers' attention interface"
REPLACED = "its code fails where attention is replaced"
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": (
        "other logits than by itself",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "decoder_layers": 2,
            "encoder_layers": 2,
            "decoder_ffn_dim": 48,
        }
        | {"decoder_attention_heads": 4, "max_position_embeddings": 64},
    ),
    "bloom": (INTERFACE, {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "deepseek_v2": ("keys and values of layer 0 differ in shape", LATENT),
    "deepseek_v3": ("keys and values of layer 0 differ in shape", LATENT),
    "diffllama": ("layer 0 attends twice a token", GROUPED),
    "falcon": (REPLACED, SIZES),
    "gpt_oss": ("it uses attention sinks", WIDE | LOCAL_EXPERTS),
    "gptj": (INTERFACE, GPT | {"rotary_dim": 4}),
    "lfm2": (INTERFACE, GROUPED | TWO | {"layer_types": ["conv", "full_attention"]}),
    "llama4_text": ("no module of its own below its LM head", WIDE | {"num_local_experts": 2}),
    "mamba": (INTERFACE, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}),
    "mpt": (REPLACED, {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2}),
    "rwkv": (INTERFACE, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}),
    "t5": (REPLACED, {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 4}),
}


def random_model(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    """Return a model of `kind` whose next token is far from certain."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    made = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = made.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model


@pytest.mark.parametrize("kind", RUN)
def test_it_samples_what_transformers_generates(kind: str) -> None:
    model = random_model(kind, RUN[kind])

    async def sampled(engine: LocalEngine, tokens: list[int]) -> list[int]:
        seq = await engine.open(tokens)
        return (await engine.sample(seq, SamplingParams(max_tokens=5, temperature=0.0))).tokens

    async def main(prompts: list[list[int]]) -> list[list[int]]:
        async with LocalEngine(model, num_blocks=32, block_size=4) as engine:
            return await asyncio.gather(*(sampled(engine, tokens) for tokens in prompts))

    prompts = [prompt(3), prompt(13)]
    for tokens, got in zip(prompts, asyncio.run(main(prompts)), strict=True):
        ids = torch.tensor([tokens])
        mask = torch.ones_like(ids)
        want = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        assert got == want[0, len(tokens) :].tolist()


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_when_the_engine_is_made(kind: str) -> None:
    reason, settings = REFUSED[kind]
    with pytest.raises(ValueError, match=f"model_type='{kind}'.*{reason}.*--engine vllm or sglang"):
        LocalEngine(random_model(kind, settings), num_blocks=4)


def test_the_page_names_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    named = re.sub(r"\(.*?\)|[>,]", " ", page.partition("\n> ")[2].partition("\n\n")[0]).split()
    assert named == sorted(RUN.keys() | {each["model_type"] for each in FAMILIES.values()})
    table = page.partition("| tried |\n")[2].partition("\n\n")[0]
    assert all(kind.removesuffix("_text") in table for kind in REFUSED)


def test_positions_end_before_they_would_turn_otherwise() -> None:
    assert LocalEngine(random_model("phi3", RUN["phi3"]), num_blocks=4).shape.context == 24


def test_chunked_attention_is_refused() -> None:
    model = random_model("llama", GROUPED)
    model.config.attention_chunk_size = 8
    with pytest.raises(ValueError, match="it attends in chunks of 8 tokens"):
        LocalEngine(model, num_blocks=4)
