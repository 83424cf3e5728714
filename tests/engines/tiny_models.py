"""Random tiny models of several families, and what transformers makes of them."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict] = {
    "llama": {"model_type": "llama", **GROUPED},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **GROUPED},
    "mistral": {"model_type": "mistral", "sliding_window": 11, **GROUPED},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 9,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 12,
        **GROUPED,
    },
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.5},
}


@functools.cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a random model of `family` whose next token is far from certain and from uniform."""
    torch.manual_seed(0)
    settings = dict(FAMILIES[family])
    config = AutoConfig.for_model(settings.pop("model_type"), **SIZES, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model.to(dtype).eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


@functools.cache
def _greedy(family: str, tokens: tuple[int, ...], new: int) -> tuple[int, ...]:
    ids = torch.tensor([tokens])
    out = tiny(family).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    return tuple(out[0, len(tokens) :].tolist())


def greedy(family: str, tokens: list[int], new: int) -> list[int]:
    """Return the `new` tokens that transformers' `generate` puts after `tokens`."""
    return list(_greedy(family, tuple(tokens), new))


def direct_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Return the fp32 logits [len(tokens), vocab_size] of one plain forward."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


WORDS = "look at the desk then open drawer one and take a key <action> go </action> <explore> "


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of fewer than `VOCAB` tokens; tags span several of them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<|end|>"], show_progress=False)
    backend.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)
