"""Launches of the kernels in triton.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STATISTICS = {"BLOCK": 4096, "num_warps": 8}
GRADIENT = {"BLOCK": 4096, "num_warps": 8}


def launch_statistics(
    logits: Tensor, tokens: Tensor, inverse: Tensor, softcap: float
) -> tuple[Tensor, ...]:
    """Return (peak, total, moment, chosen), float32 [C]; see `rows.Statistics`."""
    from spark_kernels.head_loss.triton import statistics_kernel

    count, vocab = logits.shape
    out = torch.empty((4, count), dtype=torch.float32, device=logits.device).unbind()
    if count:
        kernel: Any = statistics_kernel[(count,)]
        where = (vocab, logits.stride(0))
        kernel(logits, tokens, inverse, *out, *where, SOFTCAP=softcap, **STATISTICS)
    return out


def launch_gradient(
    logits: Tensor, tokens: Tensor, inverse: Tensor, softcap: float, *columns: Tensor
) -> None:
    """Overwrite `logits`; columns: normaliser, entropy and both derivatives, float32 [C]."""
    from spark_kernels.head_loss.triton import gradient_kernel

    count, vocab = logits.shape
    if count:
        kernel: Any = gradient_kernel[(-(-vocab // GRADIENT["BLOCK"]), count)]
        where = (vocab, logits.stride(0))
        kernel(logits, tokens, inverse, *columns, *where, SOFTCAP=softcap, **GRADIENT)
