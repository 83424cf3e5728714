"""The attention that transformers models call while the embedded engine runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

# transformers builds no mask for an implementation that has no mask function
IMPLEMENTATION = "spark_paged"


class Unfit(ValueError):
    """What a model does that the embedded engine cannot."""


class Attend(Protocol):
    """Attention of one layer over one flattened batch."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int,
        softcap: float,
    ) -> torch.Tensor:
        """Take query [T, Hq, D], key and value [T, Hkv, D]; return [T, Hq, D]."""
        ...


_attend: ContextVar[Attend] = ContextVar("spark_attend")


def _interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Take [1, H, T, D] as transformers gives it; return ([1, T, Hq, D], no weights)."""
    if attention_mask is not None or s_aux is not None:
        what = "attention sinks" if attention_mask is None else "an attention mask of its own"
        raise Unfit(f"it uses {what}")
    out = _attend.get()(
        # transformers' attention modules have it, torch's Module does not
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or 0,
        softcap=softcap or 0.0,
    )
    return out.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, _interface)


def model_configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Return every distinct config object that the modules of `model` look at."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())


@contextmanager
def attention(configs: list[PreTrainedConfig], attend: Attend) -> Iterator[None]:
    """Route the attention of the models with these configs to `attend`; undone on exit.

    The module may be a trainer's live one, so its own implementation is put back every step.
    """
    before = [config._attn_implementation_internal for config in configs]
    token = _attend.set(attend)
    for config in configs:
        config._attn_implementation_internal = IMPLEMENTATION
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        _attend.reset(token)
