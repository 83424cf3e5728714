"""What one tree may spend: leaves (at once or paced over the episode), tokens and seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable


class TreeBudget:
    """N leaves of which M are roots; the N - M spare ones go to the states that branch.

    *First come, first served* (`pace_turns=None`): every spare leaf is there from the start.
    *Paced*: the k-th of S spare leaves is released once k * pace_turns / (S + 1) decisions have
    been taken, so that forks spread over the episode and share half of it on average.

    Who comes first is not a matter of timing: the driver asks in the order (turn, lineage), and a
    trajectory that asks waits until no other of its tree can still ask for an earlier place. An
    answer of 0 needs no waiting because `available` never rises within a turn.

    The token budget is split evenly over the N leaves, the shared prefix charged to the
    trajectory that sampled it: so it is never exceeded, and no trajectory depends on the pace of
    another. Only the wall-clock budget depends on timing; it is looked at between decisions.
    """

    def __init__(
        self,
        *,
        leaves: int,
        roots: int,
        pace_turns: float | None = None,
        root_cap: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`root_cap` limits the spare leaves one root's descendants may get; None = no limit."""
        self._spare = leaves - roots
        self.leaf_tokens = None if tokens is None else tokens // leaves
        self._pace_turns = pace_turns
        self._root_cap = self._spare if root_cap is None else root_cap
        self._granted: Counter[int] = Counter()
        self._clock = clock
        self._deadline = None if seconds is None else clock() + seconds

    def available(self, *, turn: int, lineage: tuple[int, ...]) -> int:
        """Return how many more leaves may start after decision `turn` of `lineage`."""
        left = self._released(turn) - self._granted.total()
        return max(0, min(left, self._root_cap - self._granted[lineage[0]]))

    def grant(self, wanted: int, *, turn: int, lineage: tuple[int, ...]) -> int:
        """Reserve and return up to `wanted` additional leaves."""
        granted = min(wanted, self.available(turn=turn, lineage=lineage))
        self._granted[lineage[0]] += granted
        return granted

    def close(self) -> None:
        """Grant nothing more: what is left is for trajectories that start anew."""
        self._root_cap = 0

    def expired(self) -> bool:
        """Return True when the seconds have run out."""
        return self._deadline is not None and self._clock() >= self._deadline

    def _released(self, turn: int) -> int:
        """Return how many spare leaves exist once decision `turn` has been taken."""
        if self._pace_turns is None:
            return self._spare
        return min(self._spare, int((turn + 1) * (self._spare + 1) / self._pace_turns))
