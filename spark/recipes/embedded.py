"""Engines of a recipe's policy that run beside the caller: no server, no URL."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.engines.local import LocalEngine
from spark.engines.local.model import pick_device
from spark.recipes.config import Recipe
from spark.recipes.policy import resolve
from spark.serve.launch import need

BLOCK = 16
"""Tokens that `kv_blocks` counts in."""
VLLM_BLOCK = 32
"""vLLM's CPU kernels take multiples of this."""


def embedded(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return an engine that has a copy of `model`, or loads what `model` was loaded from.

    Raises ValueError when the engine is not installed, or the recipe's device cannot be used.
    """
    if recipe.engine == "local":
        device = pick_device(recipe.device)
        return LocalEngine(
            cast(Any, _copied(model, getattr(torch, recipe.model.dtype))).to(device),
            num_blocks=recipe.kv_blocks,
            tokenizer=tokenizer,
        )
    need(recipe.engine)
    path, tokens = resolve(recipe.model.path), recipe.kv_blocks * BLOCK
    if recipe.engine == "sglang":
        from spark.serve.sglang.engine import EmbeddedSGLang

        return EmbeddedSGLang(
            path, dtype=recipe.model.dtype, page_size=BLOCK, max_total_tokens=tokens
        )
    from spark.serve.vllm.engine import EmbeddedVLLM

    return EmbeddedVLLM(
        path,
        dtype=recipe.model.dtype,
        block_size=VLLM_BLOCK,
        num_gpu_blocks_override=tokens // VLLM_BLOCK,
    )


def _copied(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of `model` with its weights in `dtype`."""
    own = copy.deepcopy(model)
    # not `to`: it would round the rotary frequencies, which stay float32 where a model is loaded
    for weight in own.parameters():
        weight.data = weight.data.to(dtype)
    return own
