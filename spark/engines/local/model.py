"""Loading of a transformers model and the probe of what its cache must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from spark.engines.local.attention import attention, model_configs


@dataclass(kw_only=True, slots=True)
class ModelShape:
    """What one token costs, as seen by running one token through the model.

    Example:
        ModelShape(layers={0: (8, 64), 1: (8, 64)}, hidden_size=512, vocab_size=2048, context=4096)
    """

    layers: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Layer index -> (KV heads, head size)."""
    hidden_size: int = 0
    vocab_size: int = 0
    """Width of the logits."""
    context: int | None = None
    """Longest sequence in tokens; None where the configuration names none."""
    output: type[ModelOutput] = BaseModelOutputWithPast
    """What the layers below the LM head return."""


def load(
    model: PreTrainedModel | str | Path, dtype: torch.dtype | None, device: str | None
) -> PreTrainedModel:
    """Return the model on its device; a module stays as it is and must agree with both.

    Raises:
        ValueError: a module has another dtype or device than asked for, or there is no such device.
    """
    if not isinstance(model, torch.nn.Module):
        device = check_device(device or "cpu")
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype or "auto")
        return cast(PreTrainedModel, loaded.to(device).eval())
    if hasattr(model, "get_base_model"):
        # LoRA layers live inside the model they wrap
        model = cast(PreTrainedModel, cast(Any, model).get_base_model())
    if dtype is not None and model.dtype != dtype:
        raise ValueError(
            f"dtype is {dtype} but the module has {model.dtype}: call model.to({dtype})"
        )
    if device is not None and model.device.type != torch.device(device).type:
        raise ValueError(f"device is {device} but the module is on {model.device}: move it first")
    return model


def check_device(name: str) -> str:
    """Return `name`. Raises ValueError where this torch has no such device."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"device={name!r} is unknown: use cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device={name!r}: torch {torch.__version__} sees {count} GPUs here; use another, or "
            "cpu (`spark doctor` tells what there is)"
        )
    return name


def probe(model: PreTrainedModel) -> ModelShape:
    """Run one token through `model` and return what was seen.

    Raises:
        ValueError: some layers do not attend through transformers' attention interface, so their
            state can be neither paged nor forked.
    """
    config = model.config.get_text_config(decoder=True)
    shape = ModelShape(context=getattr(config, "max_position_embeddings", None))

    def record(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        if key.shape != value.shape:
            raise ValueError(
                f"layer {layer}: keys and values differ in shape, which is unsupported"
            )
        shape.layers[layer] = (key.shape[1], key.shape[2])
        return query

    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode(), attention(model_configs(model), record):
        hidden = model.base_model(input_ids=one, position_ids=one, use_cache=False)
        shape.output = type(hidden)
        shape.hidden_size = hidden.last_hidden_state.shape[-1]
        shape.vocab_size = model(input_ids=one, position_ids=one, use_cache=False).logits.shape[-1]
    if sorted(shape.layers) != list(range(config.num_hidden_layers)):
        raise ValueError(
            f"{type(model).__name__} cannot run here: {len(shape.layers)} of its "
            f"{config.num_hidden_layers} layers use transformers' attention interface"
        )
    return shape


def check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, shape: ModelShape) -> None:
    """Raise ValueError if the tokenizer has ids that the model has no logit for.

    Models often have more logits than the tokenizer has tokens (padding), which is fine.
    """
    if tokenizer is not None and len(tokenizer) > shape.vocab_size:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} tokens but the model's vocabulary has "
            f"{shape.vocab_size}: load the tokenizer that belongs to the model"
        )


def check_state(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where a name in `state` is unknown to `model` or a shape differs."""
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise ValueError(f"state has {name!r}, which {type(model).__name__} does not have")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the model's {tuple(own[name].shape)}"
            raise ValueError(f"shape of {name!r} in state is {shapes}")


def load_state(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy `state` into the parameters and buffers of `model` in place.

    Raises ValueError as `check_state` does; nothing is copied then.
    """
    check_state(model, state)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def first_non_finite(model: PreTrainedModel, tokens: list[int]) -> str:
    """Return the name of the first module whose output over `tokens` is not finite, or ""."""
    found: list[str] = []

    def check(name: str, module: torch.nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, torch.Tensor) and not bool(first.isfinite().all()):
            found.append(name)

    named = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_hook(partial(check, name)) for name, module in named]
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else ""
