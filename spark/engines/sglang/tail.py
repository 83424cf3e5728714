"""The partly filled page at the end of a shared prefix: copied, so that nothing is recomputed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spark_kernels import kv_fork


@dataclass(slots=True)
class Tail:
    """A page of its own that holds the KV of tokens [start, start + used)."""

    start: int
    used: int
    page: Tensor
    """Slots of the whole page, int64 [page_size]."""
    attached: bool = False
    """Counted into the prefix of the request that is to own it."""

    @property
    def slots(self) -> Tensor:
        """Slots of the used tokens, int64 [used]."""
        return self.page[: self.used]


class Pages:
    """Copies pages inside SGLang's KV pool."""

    def __init__(self, cache: Any, stream: AbstractContextManager[Any]) -> None:
        """`stream` orders copies with the forward passes: behind those under way."""
        self._cache = cache
        self._stream = stream
        self._allocator = cache.token_to_kv_pool_allocator
        self.size: int = self._allocator.page_size
        self._buffers = _buffers(self._allocator.get_kvcache(), self.size)

    @property
    def copies(self) -> bool:
        """Whether this pool's pages can be copied; if not, their tokens are recomputed."""
        return self.size > 1 and bool(self._buffers)

    def copy(self, source: int, start: int, used: int) -> Tail | None:
        """Copy the first `used` tokens of page `source`; None where no page can be had."""
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        evict_from_tree_cache(self._cache, self.size)
        page = self._allocator.alloc(self.size)
        if page is None:
            return None
        target = int(page[0]) // self.size
        with self._stream:
            for buffers in self._buffers:
                kv_fork(buffers, [(source, target, used)], layout="NHD")
        return Tail(start, used, page)

    def free(self, tail: Tail) -> None:
        """Give the page back."""
        self._allocator.free(tail.page)


def _buffers(pool: Any, page_size: int) -> list[list[Tensor]]:
    """Return the pool's K and V of all layers as [pages, page_size, heads, head_dim].

    Empty for pools of another layout (latent attention, windows, quantised with scales).
    """
    keys, values = getattr(pool, "k_buffer", None), getattr(pool, "v_buffer", None)
    if type(pool).__name__ != "MHATokenToKVPool" or not keys or not values:
        return []

    def paged(buffer: Tensor) -> Tensor:
        pages = buffer.shape[0] // page_size
        return buffer[: pages * page_size].view(pages, page_size, *buffer.shape[1:])

    if any(buffer.dim() != 3 or not buffer.is_contiguous() for buffer in (*keys, *values)):
        return []
    groups = [[paged(key) for key in keys], [paged(value) for value in values]]
    same = groups[0][0].shape == groups[1][0].shape
    return [groups[0] + groups[1]] if same else groups
