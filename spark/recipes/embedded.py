"""Engines of a recipe's policy that run beside the caller: no server, no URL."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.engines.local import LocalEngine
from spark.recipes.config import Recipe
from spark.recipes.policy import resolve

BLOCK = 32
"""Tokens of a block of vLLM's KV cache; its CPU kernels take multiples of this."""


def embedded(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return an engine that has a copy of `model`, or loads what `model` was loaded from."""
    if recipe.engine == "local":
        return LocalEngine(
            copy.deepcopy(model),
            num_blocks=recipe.kv_blocks,
            dtype=getattr(torch, recipe.model.dtype),
            tokenizer=tokenizer,
        )
    from spark.serve.vllm.engine import EmbeddedVLLM

    return EmbeddedVLLM(
        resolve(recipe.model.path),
        dtype=recipe.model.dtype,
        block_size=BLOCK,
        num_gpu_blocks_override=recipe.kv_blocks * 16 // BLOCK,
    )
