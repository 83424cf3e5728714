"""Chooses what one step computes, and whose blocks are given up when there are too few."""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import Any

from spark.engines.local.sequence import Request, Sequence
from spark_kernels import BlockPool, OutOfBlocks

Work = list[tuple[Request, int]]


class Scheduler:
    """Continuous batching with chunked prefill over one block pool; older sequences go first."""

    def __init__(self, num_blocks: int, block_size: int, max_batched_tokens: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_batched_tokens = max_batched_tokens
        self.sequences: dict[int, Sequence] = {}
        self.requests: list[Request] = []
        """Unfinished, oldest sequence first."""
        self.preemptions = 0
        self.step = 0
        self._next_id = 0
        self._scheduled: set[int] = set()
        self._no_victim_for: float = inf

    def add_sequence(self, tokens: list[int], sampled: bytearray, **state: Any) -> Sequence:
        """Register a new sequence and return it."""
        seq = Sequence(id=self._next_id, tokens=tokens, sampled=sampled, **state)
        self._next_id += 1
        self.sequences[seq.id] = seq
        return seq

    def drop_sequence(self, seq: Sequence) -> None:
        """Forget `seq` and free the blocks nobody else holds."""
        self._evict(seq)
        self.sequences.pop(seq.id, None)

    def add_request(self, request: Request) -> None:
        """Queue `request` for the coming steps."""
        request.seq.request = request
        insort(self.requests, request, key=lambda r: r.seq.id)

    def drop_request(self, request: Request) -> None:
        """Take `request` out of the queue."""
        request.seq.request = None
        self.requests.remove(request)

    def schedule(self) -> Work:
        """Return (request, tokens to compute) of the next step, with room reserved.

        Decoding goes before prefill, which gets what is left of the token budget. An empty answer
        means that the oldest request cannot fit even alone.
        """
        self.step += 1
        self._begin()
        work: Work = []
        budget = self.max_batched_tokens
        long: list[Request] = []
        for request in self.requests:
            missing = request.missing
            if missing > 1:
                long.append(request)
            elif budget and (missing == 0 or self._reserve(request.seq, 1)):
                budget -= 1
                self._take(work, request, missing)
        for request in long:
            count = min(request.missing, budget)
            # first come, first served: nobody younger takes the blocks this one waits for
            if not count or not self._reserve(request.seq, count):
                break
            budget -= count
            self._take(work, request, count)
        return work

    def fork(self, seq: Sequence, n: int, at: int) -> tuple[list[int | None], list[Any]]:
        """Return `n` pool handles that share the first `at` tokens, and the block copies to do.

        Where no block can be freed for their tails, the children start preempted (None).
        """
        self._begin()
        assert seq.handle is not None
        while True:
            try:
                handles, pairs = self.pool.fork(seq.handle, n, at)
                return list(handles), list(pairs)
            except OutOfBlocks:
                if not self._preempt_one(seq):
                    self.preemptions += n
                    return [None] * n, []

    @property
    def capacity(self) -> int:
        """Tokens the pool holds."""
        return self.num_blocks * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that `tokens` tokens fill."""
        return -(-tokens // self.block_size)

    def _begin(self) -> None:
        self._scheduled.clear()
        self._no_victim_for = inf

    def _take(self, work: Work, request: Request, count: int) -> None:
        request.seq.last_used = self.step
        self._scheduled.add(request.seq.id)
        work.append((request, count))

    def _reserve(self, seq: Sequence, count: int) -> bool:
        """Make room in the pool for the next `count` tokens of `seq`, preempting if need be."""
        if seq.handle is None:
            # it starts only with room for all its tokens, or it would soon be preempted again
            while self.pool.num_free < self.blocks_for(len(seq.tokens)):
                if not self._preempt_one(seq):
                    return False
            seq.handle = self.pool.open()
        while True:
            try:
                self.pool.append(seq.handle, count)
                return True
            except OutOfBlocks:
                if not self._preempt_one(seq):
                    return False

    def _preempt_one(self, needy: Sequence) -> bool:
        """Free the blocks of the idle sequence used longest ago, else of the youngest active one.

        Active sequences older than `needy` and those of this step's batch are spared.
        """
        if needy.id >= self._no_victim_for:
            # nobody to preempt for an older one, so nobody for this one
            return False
        others = [
            seq
            for seq in self.sequences.values()
            if seq.handle is not None and seq is not needy and seq.id not in self._scheduled
        ]
        idle = [seq for seq in others if seq.request is None]
        younger = [seq for seq in others if seq.request is not None and seq.id > needy.id]
        if idle:
            victim = min(idle, key=lambda seq: seq.last_used)
        elif younger:
            victim = max(younger, key=lambda seq: seq.id)
        else:
            self._no_victim_for = needy.id
            return False
        self._evict(victim)
        self.preemptions += 1
        return True

    def _evict(self, seq: Sequence) -> None:
        if seq.handle is not None:
            self.pool.release(seq.handle)
        seq.handle = None
        seq.computed = 0
