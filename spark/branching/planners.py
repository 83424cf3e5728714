"""The planners: where a tree whose trajectories have all ended grows further."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from spark.branching.base import Spot
from spark.seeds import derive_seed


@dataclass(kw_only=True, frozen=True)
class RefillPlanner:
    """Start anew at the prompt until no leaf is left over (as ARPO does, arXiv 2507.19849)."""

    trigger = "refill"

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        """Return the prompt as often as leaves are left."""
        return [0] * spare if number == 0 else []


@dataclass(kw_only=True, frozen=True)
class RandomPlanner:
    """Grow from random states of finished chains, with replacement (Tree-GRPO).

    arXiv 2509.21240: in each of L rounds, N states of every tree, its beginning included; a tree
    there is what grows from one root, so that each choice of the beginning is a new root here.
    """

    plan_spots: int = 2
    """N."""
    plan_rounds: int = 1
    """L."""
    trigger = "random"

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        """Draw by numbers that depend only on the tree's seed, the root and the round."""
        if number >= self.plan_rounds:
            return []
        families: dict[int, list[int]] = defaultdict(list)
        for index, spot in enumerate(spots):
            if spot.lineage:
                families[spot.lineage[0]].append(index)
        # turn by turn: where leaves run out, every root has had as many
        return [
            own[derive_seed("plan", spots[0].seed, root, number, k) % len(own)]
            for k in range(self.plan_spots)
            for root in sorted(families)
            for own in [[0, *families[root]]]
        ]


@dataclass(kw_only=True, frozen=True)
class EntropyPlanner:
    """Grow from the least sure decisions, each less likely the more often it was (AT2PO's idea).

    arXiv 2601.04767: in every round the top K turns by mean entropy, with a penalty for those
    already expanded; what its code does beyond the paper's text was not looked at.
    """

    plan_spots: int = 2
    """K."""
    plan_rounds: int = 2
    plan_penalty: float = 0.5
    """Nats taken from the entropy for every trajectory already started there."""
    trigger = "entropy"

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        """Return the K best; ties go to the earlier one."""
        if number >= self.plan_rounds:
            return []
        worth = {
            index: fmean(spot.entropies) - self.plan_penalty * spot.grown
            for index, spot in enumerate(spots)
            if spot.entropies
        }
        return sorted(worth, key=lambda index: (-worth[index], index))[: self.plan_spots]


@dataclass(kw_only=True, frozen=True)
class SuccessPlanner:
    """Return to states on the way to a success and go on from there anew (Go-Explore's idea).

    arXiv 1901.10995: first return, then explore. Where every trajectory has won, or none, nothing
    grows: such a tree has nothing to compare, and its spare leaves are saved.
    """

    plan_spots: int = 2
    """States grown from in a round, drawn with replacement from the winning trajectories."""
    plan_rounds: int = 1
    trigger = "success"

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        """Draw by numbers that depend only on the tree's seed and the round."""
        won = [index for index, spot in enumerate(spots) if spot.won]
        lost = any(spot.lineage and not spot.won for spot in spots)
        if number >= self.plan_rounds or not won or not lost:
            return []
        draws = (derive_seed("plan", spots[0].seed, number, k) for k in range(self.plan_spots))
        return [won[draw % len(won)] for draw in draws]
