"""Small random models that vLLM's CPU kernels take, and what transformers makes of them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from tiny_models import tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spark.rollout.chat import APPEND_ONLY

VOCAB, CONTEXT = 97, 2048
FAMILIES = {"qwen3": {}, "llama": {}}


@functools.cache
def model(family: str) -> PreTrainedModel:
    """Return a random model whose next token is far from certain and from uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
        made.lm_head.weight.normal_(std=0.2)
    return made.float().eval()


def save(family: str, folder: Path) -> Path:
    """Write the model and its tokenizer to `folder`."""
    model(family).save_pretrained(folder)
    told = copy.deepcopy(tokenizer())
    told.chat_template = APPEND_ONLY
    told.save_pretrained(folder)
    return folder


def prompt(length: int, seed: int = 0) -> list[int]:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


@functools.cache
def exact(family: str) -> PreTrainedModel:
    """Return the same model in fp64."""
    return copy.deepcopy(model(family)).double()


def logits(family: str, tokens: list[int]) -> torch.Tensor:
    """Return fp64 logits [len(tokens), VOCAB] of one plain forward."""
    with torch.inference_mode():
        return exact(family)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@functools.cache
def _greedy(family: str, tokens: tuple[int, ...], new: int) -> tuple[int, ...]:
    ids = torch.tensor([tokens])
    out = model(family).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    return tuple(out[0, len(tokens) :].tolist())


def greedy(family: str, tokens: list[int], new: int) -> list[int]:
    """Return the `new` tokens that transformers' `generate` puts after `tokens`."""
    return list(_greedy(family, tuple(tokens), new))
