"""The copy of partial blocks: `kv_fork` in one call for all layers where the layout allows.

vLLM's cache layouts differ by attention kernel (on a CPU the tokens of a block are interleaved), so
whole blocks are copied, as vLLM does; it does it layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spark_kernels import kv_fork
from spark_kernels.kv_fork.op import COMPILED

Copy = Callable[[Iterable[Tensor], int, Sequence[Any]], None]


def with_kv_fork(original: Copy) -> Copy:
    """Return vLLM's `copy_kv_cache_blocks_inplace` with the op in front of it."""

    def copy(kv_caches: Iterable[Tensor], num_blocks: int, copies: Sequence[Any]) -> None:
        caches = list(kv_caches)
        blocks = whole_blocks(caches, num_blocks)
        sources, targets = {pair[0] for pair in copies}, {pair[1] for pair in copies}
        if not blocks or len(targets) < len(copies) or sources & targets:
            original(caches, num_blocks, copies)
        else:
            kv_fork(blocks, [(source, target, 1) for source, target in copies])

    return copy


def whole_blocks(caches: Sequence[Tensor], num_blocks: int) -> list[Tensor]:
    """Return the caches as uint8 [num_blocks, 1, 1, bytes of a block]; empty = not possible.

    Layers that share a cache are given once. Possible where every layer has storage of its own,
    block after block, the same size in all of them.
    """
    found: dict[int, Tensor] = {}
    for cache in caches:
        storage = cache.untyped_storage()
        parts, rest = divmod(cache.shape[0], num_blocks)
        stride = cache.stride(0) * cache.element_size() * parts
        if rest or cache.device.type not in COMPILED or storage.nbytes() != num_blocks * stride:
            return []
        flat = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(storage)
        found[storage.data_ptr()] = flat.view(num_blocks, 1, 1, -1)
    blocks = list(found.values())
    return blocks if len({block.shape for block in blocks}) == 1 else []
