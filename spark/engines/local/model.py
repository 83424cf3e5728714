"""Loading of a transformers model and the probe of what its cache must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from spark.engines.local.attention import Unfit, attention, model_configs


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
    body: Any = None
    """The module of these layers that the LM head's own forward calls."""


def load(
    model: PreTrainedModel | str | Path, dtype: torch.dtype | None, device: str | None
) -> PreTrainedModel:
    """Return the model on its device; a module stays as it is and must agree with both.

    Raises:
        ValueError: a module has another dtype or device than asked for, or there is no such device.
    """
    if not isinstance(model, torch.nn.Module):
        device = pick_device(device or "cpu")
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


def pick_device(name: str | None) -> str:
    """Return `name`, a GPU for None if there is one. Raises ValueError where torch has no such."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
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
        ValueError: its layers do not attend, once each, through transformers' attention interface,
            so that their state can be neither paged nor forked.
    """
    config = model.config.get_text_config(decoder=True)
    shape = ModelShape(context=_context(config))
    with fitting(model):
        _look(model, shape)
    if sorted(shape.layers) != list(range(config.num_hidden_layers)):
        raise unfit(
            model,
            f"only {len(shape.layers)} of its {config.num_hidden_layers} layers use transformers' "
            "attention interface",
        )
    if size := getattr(config, "attention_chunk_size", None):
        raise unfit(model, f"it attends in chunks of {size} tokens")
    return shape


def _context(config: Any) -> int | None:
    """Return the longest sequence that the configuration names."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # past it a sequence would change how all others of its batch are rotated
        return int(rope["original_max_position_embeddings"])
    return getattr(config, "max_position_embeddings", None)


@contextmanager
def fitting(model: PreTrainedModel) -> Iterator[None]:
    """Turn whatever the code of `model` raises into its refusal."""
    try:
        yield
    except Unfit as error:
        raise unfit(model, str(error)) from None
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        # the device's trouble, not the model's
        raise
    except Exception as error:
        reason = f"its code fails where attention is replaced ({type(error).__name__}: {error})"
        raise unfit(model, reason) from error


def unfit(model: PreTrainedModel, reason: str) -> ValueError:
    """Return the refusal of a kind of model that the embedded engine cannot run."""
    return ValueError(
        f"model_type={model.config.model_type!r} ({type(model).__name__}) cannot run in the "
        f"embedded engine: {reason}. Use --engine vllm or sglang, or transformers' own generate"
    )


def _look(model: PreTrainedModel, shape: ModelShape) -> None:
    """Fill in `shape` from a forward of one token."""
    outputs: dict[torch.nn.Module, Any] = {}

    def record(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        if key.shape != value.shape:
            raise Unfit(f"keys and values of layer {layer} differ in shape")
        if layer in shape.layers:
            raise Unfit(f"layer {layer} attends twice a token")
        shape.layers[layer] = (key.shape[1], key.shape[2])
        return query

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        outputs[module] = output

    # some heads call the decoder inside the base model, not the base model
    bodies = [model.base_model, model.get_decoder()]
    hooks = [body.register_forward_hook(note) for body in dict.fromkeys(bodies)]
    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode(), attention(model_configs(model), record):
            logits = model(input_ids=one, position_ids=one, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    shape.body = next(body for body in bodies if body in outputs)
    if shape.body is model:
        raise Unfit("there is no module of its own below its LM head")
    shape.output = type(outputs[shape.body])
    shape.hidden_size = outputs[shape.body].last_hidden_state.shape[-1]
    shape.vocab_size = logits.shape[-1]


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
