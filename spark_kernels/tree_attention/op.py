"""`tree_attention`: paged causal attention that reads what siblings share once."""

from __future__ import annotations

import torch
from torch import Tensor

from spark_kernels import _load
from spark_kernels._C import Plan
from spark_kernels.tree_attention import device
from spark_kernels.tree_attention.check import check
from spark_kernels.tree_attention.device import DevicePlan
from spark_kernels.tree_attention.reference import tree_attention_reference

# found once, so that torch.compile sees a constant
COMPILED = _load.has("tree_attention", "cpu")


def plan_tensor(plan: Plan) -> Tensor:
    """Return the int32 words of `plan` as a tensor that shares its memory."""
    # not kept by the plan: the two would keep each other for ever
    return torch.frombuffer(plan, dtype=torch.int32)


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: Plan | Tensor | DevicePlan,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Write this step's keys and values into the cache, then attend causally.

    T is the sum of the plan's query lengths; sequences come in plan order and their queries are
    their last tokens. The same call gives the same bits on any number of threads; what a sequence
    shares with others in the batch changes its result by rounding only (README.md says how much).

    Args:
        q: [T, num_heads, head_dim], float32 or bfloat16; head_dim a multiple of 8 up to 256.
            On CUDA also float16, and at most 16 query heads a key/value head. Strided views are
            fine here and below if the last axis is contiguous.
        k: [T, num_kv_heads, head_dim]; num_heads is a multiple of num_kv_heads.
        v: as k.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], contiguous; written.
        v_cache: as k_cache; written.
        plan: from `BlockPool.plan`, or `plan_tensor` of it (which may be longer than the plan);
            on CUDA a `DevicePlan`, or a plan that is brought there at its first use.
        scale: factor on the scores, > 0, usually head_dim ** -0.5.
        window: a query sees its last `window` tokens, itself included; 0 = all.
        softcap: scores become softcap * tanh(score / softcap); 0 = off.
        out: [T, num_heads, head_dim] to write the result to.

    Raises:
        ValueError: shapes, dtypes or the plan do not fit; nothing was written.
    """
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if isinstance(plan, DevicePlan) or (q.device.type == "cuda" and device.available()):
        here = plan if isinstance(plan, DevicePlan) else _on_device(plan, q.device)
        check(q, k, v, k_cache, v_cache, here, scale, window, softcap, out)
        return device.attend(
            q, k, v, k_cache, v_cache, here, scale=scale, window=window, softcap=softcap, out=out
        )
    if q.device.type != "cpu" or not COMPILED:
        result = tree_attention_reference(
            q, k, v, k_cache, v_cache, _whole(plan), scale=scale, window=window, softcap=softcap
        )
        return out.copy_(result)
    words = plan if isinstance(plan, Tensor) else plan_tensor(plan)
    try:
        torch.ops.spark.tree_attention(
            q, k, v, k_cache, v_cache, words, scale, min(window, 2**31 - 1), softcap, out
        )
    except RuntimeError as error:
        # drop the place in the C++ source
        raise ValueError(str(error).splitlines()[0].rpartition("tree_attention: ")[2]) from error
    return out


def _whole(plan: Plan | Tensor) -> Plan:
    return Plan(plan.tolist()) if isinstance(plan, Tensor) else plan


def _on_device(plan: Plan | Tensor, where: torch.device) -> DevicePlan:
    """Return `plan` on `where`; a plan remembers it, so that all layers share it."""
    if isinstance(plan, Tensor):
        return DevicePlan(_whole(plan), where)
    known: DevicePlan | None = getattr(plan, "_device", None)
    if known is None or known.device != where:
        # of a copy: a plan and its device plan that name each other would outlive their use
        known = plan._device = DevicePlan(_whole(plan_tensor(plan)), where)
    return known


if COMPILED:
    torch.library.register_fake("spark::tree_attention", lambda *_: None)
