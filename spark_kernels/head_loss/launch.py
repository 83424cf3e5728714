"""Launches of the kernels in triton.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spark_kernels.guard import on

STATISTICS = {"BLOCK": 4096, "num_warps": 8}
GRADIENT = {"BLOCK": 4096, "num_warps": 8}
POLICY = {"num_warps": 16}
POLICY_BYTES = 32768
"""Of a row, read at once: enough in flight with one program on each multiprocessor."""
INTERPRETED = 4
"""Programs where no device says how many it runs at once."""


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
        with on(logits.device):
            kernel(logits, tokens, inverse, *out, *where, SOFTCAP=softcap, **STATISTICS)
    return out


def launch_gradient(
    logits: Tensor, tokens: Tensor, inverse: Tensor, softcap: float, *columns: Tensor
) -> None:
    """Overwrite `logits`; columns: normaliser, entropy and both derivatives, float32 [C]."""
    from spark_kernels.head_loss.triton import gradient_kernel

    count, vocab = logits.shape
    if count:
        # rows first: of the second axis there may be 65,535
        kernel: Any = gradient_kernel[(count, -(-vocab // GRADIENT["BLOCK"]))]
        where = (vocab, logits.stride(0))
        with on(logits.device):
            kernel(logits, tokens, inverse, *columns, *where, SOFTCAP=softcap, **GRADIENT)


def launch_policy(
    logits: Tensor,
    tokens: Tensor,
    inverse: Tensor,
    softcap: float,
    columns: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, ...]:
    """Overwrite `logits`; return (loss, logprob, entropy), float32 [C].

    `columns` are those of `PolicyLoss`, float32 [6, C].
    """
    from spark_kernels.head_loss.triton import policy_kernel

    count, vocab = logits.shape
    out = torch.empty((3, count), dtype=torch.float32, device=logits.device)
    if count:
        kernel: Any = policy_kernel[(min(count, _programs(logits.device)),)]
        given = (logits, tokens, inverse, columns.contiguous(), out)
        where = (vocab, logits.stride(0), count, 1 - clip_low, 1 + clip_high)
        block = POLICY_BYTES // logits.element_size()
        with on(logits.device):
            kernel(*given, *where, SOFTCAP=softcap, BLOCK=block, **POLICY)
    return out.unbind()


@functools.cache
def _programs(device: torch.device) -> int:
    """Return how many programs run at once, one on each multiprocessor."""
    if device.type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count
