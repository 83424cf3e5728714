"""Policies on disk: loading by name or path, and saving, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spark.recipes.config import LoraConfig, ModelConfig
from spark.train.trainer import TreeTrainer, base_model

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def resolve(path: str) -> str:
    """Return the folder of a committed checkpoint, or `path` itself."""
    committed = CHECKPOINTS / path
    return str(committed) if committed.is_dir() else path


def load_policy(
    config: ModelConfig, field: str = "model.path"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model (float32) and tokenizer.

    Raises ValueError, which names the `field` that gave the path, when they are damaged or misfit.
    """
    path = resolve(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        make = "; `spark sft RECIPE` makes those in runs/" if path.startswith("runs/") else ""
        raise ValueError(
            f"{field}={config.path!r} cannot be loaded ({error}); give a folder that "
            f"save_pretrained wrote, or a model's name{make}"
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{field}={config.path!r} is damaged: {len(missing)} weights are missing, "
            f"{missing[0]} first; copy or train it again"
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"{field}={config.path!r}: the tokenizer has {len(tokenizer)} tokens but the model "
            f"only {rows}; use the tokenizer that the model was trained with"
        )
    return model, tokenizer


def with_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> nn.Module:
    """Return `model` with frozen weights and trainable adapters, the same for the same `seed`.

    Raises ValueError where no module is called like a target.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    # peft draws the adapters from torch's own generator
    torch.manual_seed(seed)
    adapters = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        # peft reads a word by itself as a pattern, but for this one
        target_modules="all-linear" if "all-linear" in config.targets else list(config.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def full_state(
    model: Any, weights: Callable[[nn.Module], dict[str, Any]] = TreeTrainer.weights
) -> dict[str, Any]:
    """Return name -> tensor of the whole network, adapters merged into the weights they adapt.

    `weights` reads a network: the trainer that holds it knows how.
    """
    if not hasattr(model, "merge_adapter"):
        return weights(model)
    adapted = [each.base_layer.weight for each in model.modules() if hasattr(each, "base_layer")]
    before = [weight.detach().clone() for weight in adapted]
    model.merge_adapter()
    try:
        state = weights(base_model(model))
        return {
            name.replace(".base_layer", ""): tensor.clone()
            for name, tensor in state.items()
            if ".lora_" not in name
        }
    finally:
        model.unmerge_adapter()
        # (W + D) - D is not quite W
        with torch.no_grad():
            for weight, old in zip(adapted, before, strict=True):
                weight.copy_(old)


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: dict[str, Any] | None = None,
) -> None:
    """Write what `load_policy` reads: configuration, tokenizer and `state`, or the model's own."""
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
