"""One step of a model as a function of tensors, traced so that Python is out of the way."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark.engines.local.attention import attention, model_configs
from spark.engines.local.model import ModelShape
from spark.engines.local.packed import PackedWeights
from spark_kernels import tree_attention
from spark_kernels.tree_attention import DevicePlan

logger = logging.getLogger(__name__)


class ModelStep(torch.nn.Module):
    """Computes one flattened batch; the caches and the hidden states are updated in place."""

    def __init__(self, model: PreTrainedModel, shape: ModelShape, weights: PackedWeights) -> None:
        super().__init__()
        self.model: Any = model
        self._shape, self._weights = shape, weights
        self._configs = model_configs(model)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: Tensor | DevicePlan,
        slots: Tensor,
        rows: Tensor,
        hidden: Tensor,
        caches: list[Tensor],
        packed: Sequence[Tensor] = (),
    ) -> Tensor:
        """Compute T tokens and return the logits [R, vocab_size] behind `rows`.

        Args:
            tokens: int64 [T]; positions: int64 [T].
            plan: the block pool's plan as int32 words, or on the device.
            slots: int64 [T], where in `hidden` each token goes.
            rows: int64 [R], slots of this step or of earlier ones.
            hidden: [num_slots, hidden_size].
            caches: the keys of every layer, then the values of every layer.
            packed: `PackedWeights.tensors()`, or nothing to compute with the plain weights.
        """

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
            keys, values = caches[layer], caches[len(caches) // 2 + layer]
            return tree_attention(query, key, value, keys, values, plan, **how)

        if self.model.training:
            self.model.eval()
        with attention(self._configs, attend), self._weights.used(packed):
            output = self._shape.body(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False
            )
            hidden.index_copy_(0, slots, output.last_hidden_state[0])
            return logits_of(self.model, self._shape, hidden.index_select(0, rows))


class ModelHead(torch.nn.Module):
    """The logits behind tokens that were computed in earlier steps."""

    def __init__(self, model: PreTrainedModel, shape: ModelShape, weights: PackedWeights) -> None:
        super().__init__()
        self.model: Any = model
        self._shape, self._weights = shape, weights

    def forward(self, rows: Tensor, hidden: Tensor, packed: Sequence[Tensor] = ()) -> Tensor:
        """Return the logits [R, vocab_size] behind `rows`, slots of `hidden`."""
        with self._weights.used(packed):
            return logits_of(self.model, self._shape, hidden.index_select(0, rows))


def logits_of(model: Any, shape: ModelShape, hidden: Tensor) -> Tensor:
    """Return the logits [R, vocab_size] of final hidden states [R, hidden_size].

    The model's own forward does it, so whatever it does to its logits (scales, soft caps) is done
    here too; only the layers below are replaced by the states that are known already.
    """
    base = shape.body
    below = cast(Any, shape.output)(last_hidden_state=hidden[None])
    own = base.__dict__.get("forward")
    base.__dict__["forward"] = lambda *args, **kwargs: below
    try:
        ids = torch.empty(1, 1, dtype=torch.long, device=hidden.device)
        return cast(Tensor, model(input_ids=ids, use_cache=False).logits[0])
    finally:
        del base.__dict__["forward"]
        if own is not None:
            base.__dict__["forward"] = own


def faithful_trace(
    module: torch.nn.Module, examples: Sequence[Callable[[], tuple[Any, ...]]]
) -> Callable[..., Tensor]:
    """Return `module` without its Python: a TorchScript trace, where that is sound.

    At the sizes of small models most of a step is Python: a trace takes 0.3 s and makes the step
    three times as fast; torch.compile gets as far in minutes. A trace is wrong where control flow
    depends on data. torch warns of that while tracing and the examples are compared; after any
    doubt the module itself is returned.

    Args:
        examples: each makes fresh inputs; the first is traced, all are compared, and so is what
            was written into the inputs.
    """
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        try:
            traced = cast(Any, torch.jit.trace(module, examples[0](), check_trace=False))
            faithful = all(_same(module, traced, example) for example in examples)
        except (RuntimeError, ValueError) as error:
            logger.info("%s runs eagerly: %s", type(module).__name__, error)
            return module
    doubts = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    if doubts or not faithful:
        why = str(doubts[0].message) if doubts else "the trace gives other numbers"
        logger.info("%s runs eagerly: %s", type(module).__name__, why)
        return module
    return cast(Callable[..., Tensor], traced)


def _same(
    module: torch.nn.Module, traced: Callable[..., Tensor], example: Callable[[], tuple[Any, ...]]
) -> bool:
    """Return whether both give, and write, the same numbers."""
    seen = []
    for function in (module, traced):
        inputs = example()
        seen.append([function(*inputs), *_flat(inputs)])
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
        for a, b in zip(*seen, strict=True)
    )


def _flat(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors of `inputs`; packed weights, which nothing can look into, left out."""
    parts = (part if isinstance(part, list) else [part] for part in inputs)
    return [tensor for part in parts for tensor in part if not tensor.is_mkldnn]
