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

Cache = Tensor | Sequence[Tensor]
"""What a layer keeps; up to vLLM 0.26 a recurrent one has a list of its states there."""
Copy = Callable[[Iterable[Cache], int, Sequence[Any]], None]


def with_kv_fork(original: Copy) -> Copy:
    """Return vLLM's `copy_kv_cache_blocks_inplace` with the op in front of it."""

    def copy(kv_caches: Iterable[Cache], num_blocks: int, copies: Sequence[Any]) -> None:
        caches = list(kv_caches)
        blocks = whole_blocks(caches, num_blocks)
        sources, targets = {pair[0] for pair in copies}, {pair[1] for pair in copies}
        if not blocks or len(targets) < len(copies) or sources & targets:
            original(caches, num_blocks, copies)
        else:
            kv_fork(blocks, [(source, target, 1) for source, target in copies])

    return copy


def whole_blocks(caches: Sequence[Cache], num_blocks: int) -> list[Tensor]:
    """Return the caches as uint8 [num_blocks, 1, 1, bytes of a block]; empty = not possible.

    What several layers share is given once. Possible where memory goes block after block, in a
    layer's own part or in a storage that holds all layers of a block, with blocks of one size.
    """
    found: dict[int, Tensor] = {}
    for cache in caches:
        if not isinstance(cache, Tensor):
            return []
        storage = cache.untyped_storage()
        parts, rest = divmod(cache.shape[0], num_blocks)
        stride = cache.stride(0) * cache.element_size() * parts
        if rest or cache.device.type not in COMPILED:
            return []
        if storage.nbytes() == num_blocks * stride:
            start = 0
        elif fills_its_stride(cache):
            start = int(cache.storage_offset()) * cache.element_size()
        else:
            return []
        flat = torch.empty(0, dtype=torch.uint8, device=cache.device)
        flat.set_(storage, start, (num_blocks, 1, 1, stride), (stride, stride, stride, 1))
        found[flat.data_ptr()] = flat
    blocks = list(found.values())
    return blocks if len({block.shape for block in blocks}) == 1 else []


def fills_its_stride(cache: Tensor) -> bool:
    """Return whether nothing lies between one entry of the first axis and the next."""
    inner = zip(cache.shape[1:], cache.stride()[1:], strict=True)
    reach = 1 + sum((size - 1) * stride for size, stride in inner)
    return reach == cache.stride(0) == cache[0].numel()
