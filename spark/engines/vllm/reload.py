"""New weights: nothing of the old ones stays in the KV memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

Runner: Any = Any if TYPE_CHECKING else object


class Wiping(Runner):
    """Mixed in before either of vLLM's model runners.

    A block is written token by token, and attention multiplies what it has not reached by nought:
    a value of the old weights that is not finite would reach whoever gets its block next.
    """

    kv_caches: list[Any]

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load the weights as vLLM does and wipe the KV memory; no request may hold a block."""
        super().reload_weights(*args, **kwargs)
        for cache in self.kv_caches:
            # layers that keep a state have several tensors
            for part in cache if isinstance(cache, list | tuple) else (cache,):
                part.zero_()
