"""The few things that differ between the supported SGLang releases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def publishes_running(cache: Any) -> bool:
    """Whether a request that goes on can hand over its KV.

    Before 0.5.22 a sliding window may hide what was handed over from the request, which then owns
    its slots beside the radix tree.
    """
    return hasattr(cache, "checkpoint") or not cache.supports_swa()


def publish(cache: Any, req: Any, up_to: int) -> None:
    """Hand KV [0, up_to) of a request to the radix tree; the request keeps a lock on it.

    `up_to` is a multiple of the page size and not below what the tree owns already.
    """
    refresh = getattr(req, "refresh_fill_ids", None) or req._refresh_fill_ids
    refresh()
    if hasattr(cache, "checkpoint"):
        # 0.5.22 and later
        cache.checkpoint(req, up_to=up_to)
        return
    before = req.extend_range
    req.set_extend_range(0, up_to)
    cache.cache_unfinished_req(req)
    req.extend_range = before


def replica(scheduler: Any) -> int:
    """Return which of `--dp-size` replicas `scheduler` belongs to; all its ranks say the same."""
    from sglang.srt.runtime_context import get_parallel

    rank = getattr(get_parallel(), "dp_rank", None)
    if rank is None:
        # 0.5.19; later releases have None there for a single replica
        rank = getattr(getattr(scheduler, "ps", None), "dp_rank", None)
    return rank or 0


def lock(cache: Any, req: Any) -> Callable[[], None]:
    """Keep what the tree owns of `req` from eviction until the returned function is called."""
    held = getattr(req, "lock", None)
    node = req.last_node if held is None else held.node
    receipt = cache.inc_lock_ref(node).to_dec_params()
    return lambda: cache.dec_lock_ref(node, receipt)


def prefix_length(req: Any) -> int:
    """Return how many tokens a request that waits for its prefill found in the cache."""
    # 0.5.21 and earlier carry the slots themselves
    return len(req.prefix_indices) if hasattr(req, "prefix_indices") else req.prefix_len


def lengthen_prefix(req: Any, slots: Tensor) -> None:
    """Let the KV in `slots` follow the prefix that was found."""
    if hasattr(req, "prefix_indices"):
        req.prefix_indices = torch.cat([req.prefix_indices, slots])
    else:
        req.prefix_len += len(slots)


def prefix_slots(original: Callable[..., Tensor], batch: Any, req: Any) -> Tensor:
    """Hook of 0.5.22 and later, which read the prefix off the tree: add the private tail."""
    tail = getattr(req, "spark_tail", None)
    if tail is None or not tail.attached:
        return original(batch, req)
    whole, req.prefix_len = req.prefix_len, tail.start
    slots = torch.cat([original(batch, req), tail.slots])
    req.prefix_len = whole
    return slots
