"""What `tree_attention` does, in plain torch, one sequence after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from spark_kernels._C import Plan


def tree_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Return [T, num_heads, head_dim] in the inputs' dtype; arguments as in `tree_attention`."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    starts = plan.query_offsets
    for s, (length, table) in enumerate(zip(plan.lengths, plan.tables, strict=True)):
        rows = slice(starts[s], starts[s + 1])
        position = torch.arange(length - (rows.stop - rows.start), length, device=q.device)
        seen = torch.arange(length, device=q.device)
        blocks = torch.tensor(table, device=q.device)[seen // plan.block_size]
        slots = seen % plan.block_size
        for new, cache in ((k, k_cache), (v, v_cache)):
            cache[blocks[position], :, slots[position]] = new[rows].to(cache.dtype)
        keys, values = (
            cache[blocks, :, slots].to(q.dtype).repeat_interleave(group, 1)
            for cache in (k_cache, v_cache)
        )
        scores = torch.einsum("qhd,khd->hqk", q[rows], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = position[:, None] - seen
        hidden = (distance < 0) | (distance >= (window or length))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, values)
    return out
