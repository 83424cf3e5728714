"""Linear layers whose weights lie as oneDNN's CPU kernels read them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

SMALLEST = {torch.float32: 1 << 17, torch.bfloat16: 0}
"""Elements of a weight from which on packing pays, by dtype."""
WORK = {torch.float32: 1 << 19, torch.bfloat16: 0}
"""Rows times elements from which on the packed kernel is faster: a call of it costs more."""


class PackedWeights:
    """Packed copies of a model's linear weights, made anew when a weight has changed.

    torch's own kernels reorder a weight in every call, which at the batches of decoding is much of
    the work: packed ones save it, for a second copy in memory. Changes are those that torch counts
    (not writes to `.data`), and steps of optimisers: fused ones it does not count.
    """

    steps: ClassVar[int] = 0
    """Of all optimisers in this process."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """`modules`: those of a model; which of them to pack is found out here."""
        self._layers = [layer for layer in modules if _packs(layer)]
        self._weights = [cast(Tensor, layer.weight) for layer in self._layers]
        self._versions: list[int] = []
        self._packed: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """Return the packed weights; `used` takes them."""
        versions = [self.steps, *(weight._version for weight in self._weights)]
        if versions != self._versions:
            self._packed = [_pack(weight) for weight in self._weights]
            self._versions = versions
        return self._packed

    @contextmanager
    def used(self, packed: Sequence[Tensor]) -> Iterator[None]:
        """Let the layers compute with `packed`; with nothing, as they are."""
        layers = self._layers if packed else []
        for layer, weight in zip(layers, packed, strict=True):
            own: Any = layer.weight
            least = -(-WORK[own.dtype] // own.numel())
            layer.__dict__["forward"] = partial(
                _scripted(), weight=own, packed=weight, bias=layer.bias, least=least
            )
        try:
            yield
        finally:
            for layer in layers:
                del layer.__dict__["forward"]


def _stepped(*_: Any) -> None:
    PackedWeights.steps += 1


register_optimizer_step_post_hook(_stepped)


def linear(x: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, least: int) -> Tensor:
    """Return x [..., K] @ weight [N, K]^T + bias [N]; from `least` rows on with `packed`."""
    if x.numel() // x.size(-1) < least:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@cache
def _scripted() -> Any:
    """Return `linear` as a script, so that a trace keeps the choice in it."""
    with warnings.catch_warnings():
        # as old as the trace that it is for
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(linear)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def _packs(layer: nn.Module) -> bool:
    """Return whether `layer` is a plain linear layer that is worth packing."""
    # not a subclass, nor one whose forward somebody has replaced
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    weight = layer.weight
    # the versions of tensors made for inference are not counted
    if weight.device.type != "cpu" or weight.is_inference() or not supported(weight.dtype):
        return False
    return weight.numel() >= SMALLEST[weight.dtype]


@cache
def supported(dtype: torch.dtype) -> bool:
    """Return whether this torch and this CPU have oneDNN's kernels for `dtype`."""
    if dtype not in SMALLEST or not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
