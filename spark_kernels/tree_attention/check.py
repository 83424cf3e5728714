"""What the GPU kernel of `tree_attention` supports."""

from __future__ import annotations

import torch
from torch import Tensor

from spark_kernels.tree_attention.device import SMALL_ROWS, DevicePlan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_DIM = 256


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: DevicePlan,
    scale: float,
    window: int,
    softcap: float,
    out: Tensor,
) -> None:
    """Raise ValueError unless the kernel can do this."""
    if q.dim() != 3 or k.dim() != 3:
        raise ValueError("q and k must have 3 axes")
    (tokens, heads, dim), kv_heads = q.shape, k.shape[1]
    rules = {
        f"q must be float32, bfloat16 or float16, got {q.dtype}": q.dtype in DTYPES,
        f"{heads} query heads are no multiple of {kv_heads} key/value heads": (
            kv_heads > 0 and heads % kv_heads == 0
        ),
        f"{heads} query heads for {kv_heads} key/value heads: on CUDA at most {SMALL_ROWS} share "
        "one": heads <= SMALL_ROWS * kv_heads,
        f"head_dim must be a multiple of 8 up to {MOST_DIM}, got {dim}": (
            dim % 8 == 0 and 8 <= dim <= MOST_DIM
        ),
        f"scale must be > 0, got {scale}": scale > 0,
        "window and softcap must be >= 0": window >= 0 and softcap >= 0,
        f"q must be [{len(plan.positions)}, {heads}, {dim}]": tokens == len(plan.positions),
        f"plan must be on {q.device}, got {plan.device}": plan.positions.device == q.device,
    }
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)
    _check_tensors(q, k, v, k_cache, v_cache, plan, out)


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DevicePlan, out: Tensor
) -> None:
    new = (q.shape[0], *k.shape[1:2], q.shape[2])
    cache = (k_cache.shape[0], new[1], plan.block_size, new[2])
    wanted = {"k": (k, new), "v": (v, new), "out": (out, q.shape)}
    wanted |= {"k_cache": (k_cache, cache), "v_cache": (v_cache, cache)}
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} must have q's dtype and device, {q.dtype} on {q.device}, "
                f"got {tensor.dtype} on {tensor.device}"
            )
        paged = name.endswith("cache")
        if not (tensor.is_contiguous() if paged else tensor.stride(2) == 1 or not tensor.numel()):
            where = "" if paged else " in its last axis"
            raise ValueError(f"{name} must be contiguous{where}")
    if q.stride(2) != 1 and q.numel():
        raise ValueError("q must be contiguous in its last axis")
