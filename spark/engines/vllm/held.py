"""KV of finished parents that children may still come for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Source:
    """KV that a child can share: the tokens it stands for and the blocks that hold it."""

    tokens: list[int]
    written: int
    """Tokens whose KV is in the blocks, or will be before anything scheduled later reads it."""
    blocks: list[Any]
    lora: Any
    salt: str | None
    until: float = field(default=0.0)


class Held:
    """Extra references on the blocks of finished parents, oldest first.

    They are the first to go when the pool runs dry: a child then starts from the prefix cache.
    """

    def __init__(
        self, pool: Any, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`pool` is vLLM's BlockPool."""
        self._pool = pool
        self._seconds = seconds
        self._clock = clock
        self._sources: dict[str, Source] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def get(self, name: str) -> Source | None:
        """Return the source held under `name`."""
        return self._sources.get(name)

    def hold(self, name: str, source: Source) -> None:
        """Keep the blocks of `source`, which are still referenced, until release or time."""
        self.release(name)
        for block in source.blocks:
            block.ref_cnt += 1
        source.until = self._clock() + self._seconds
        self._sources[name] = source

    def release(self, name: str) -> None:
        """Give the blocks held under `name` back; unknown names are fine."""
        source = self._sources.pop(name, None)
        if source is not None:
            # the tail first: it is the least useful part of the prefix cache
            self._pool.free_blocks(reversed(source.blocks))

    def expire(self) -> None:
        """Release what has waited too long."""
        now = self._clock()
        while self._sources:
            name, source = next(iter(self._sources.items()))
            if source.until > now:
                return
            self.release(name)

    def drop_oldest(self) -> bool:
        """Release the longest held source; False when there is none."""
        if not self._sources:
            return False
        self.release(next(iter(self._sources)))
        return True

    def clear(self) -> None:
        """Release everything."""
        while self.drop_oldest():
            pass
