"""Several servers as one engine: a tree stays where its prompt sent it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from spark.engines.base import Engine, Sample, SamplingParams
from spark.seeds import derive_seed


class AffinityEngine:
    """Sends each sequence to the engine that a hash of its prompt names, forks to their parent's.

    The same prompt goes to the same server whoever asks, so that its KV is there; a router in front
    of servers does the same with the tree id that clients repeat. See `spark.engines.base.Engine`.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """`engines` serve the same weights."""
        if not engines:
            raise ValueError("engines is empty: give at least one")
        self.engines = list(engines)
        self._places: dict[int, tuple[Engine, int]] = {}
        self._ids = count()

    async def __aenter__(self) -> AffinityEngine:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close every engine."""
        for engine in self.engines:
            # the protocol leaves out how an engine ends; all of ours are context managers
            await engine.__aexit__(*error)  # type: ignore[attr-defined]

    async def open(self, tokens: Sequence[int]) -> int:
        """Prefill `tokens` on one of the engines."""
        engine = self.engines[derive_seed("affinity", tuple(tokens)) % len(self.engines)]
        return self._keep(engine, await engine.open(tokens))

    async def extend(self, seq: int, tokens: Sequence[int]) -> None:
        """Append environment tokens to `seq`."""
        engine, own = self._place(seq)
        await engine.extend(own, tokens)

    async def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        """Return `n` children on the engine of `seq`."""
        engine, own = self._place(seq)
        return [self._keep(engine, child) for child in await engine.fork(own, n, at)]

    async def sample(self, seq: int, params: SamplingParams) -> Sample:
        """Sample a continuation of `seq`."""
        engine, own = self._place(seq)
        return await engine.sample(own, params)

    async def release(self, seq: int) -> None:
        """Drop `seq`."""
        engine, own = self._place(seq)
        await engine.release(own)
        del self._places[seq]

    async def update_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Load `state` into every engine. Raises what the first of them raises that fails."""
        loads = [engine.update_weights(state, version) for engine in self.engines]
        for failure in await asyncio.gather(*loads, return_exceptions=True):
            if failure is not None:
                raise failure

    def length(self, seq: int) -> int:
        """Return the number of tokens of `seq`."""
        engine, own = self._place(seq)
        return engine.length(own)

    def stats(self) -> dict[str, int]:
        """Return the sums of the engines' counters."""
        each = [engine.stats() for engine in self.engines]
        return {name: sum(stats[name] for stats in each) for name in each[0]}

    def _keep(self, engine: Engine, own: int) -> int:
        seq = next(self._ids)
        self._places[seq] = (engine, own)
        return seq

    def _place(self, seq: int) -> tuple[Engine, int]:
        if seq not in self._places:
            raise ValueError(f"seq {seq} is unknown or was released")
        return self._places[seq]
