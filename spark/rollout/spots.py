"""States that trajectories went through, kept so that a planner can let others start there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spark.branching.base import Planner, Spot
from spark.engines.base import Engine
from spark.rollout.ask import ask
from spark.rollout.trajectory import Trajectory


@dataclass(kw_only=True, slots=True, eq=False)
class Stand:
    """A state before a decision, and what it takes to return to it."""

    owner: Trajectory
    """The trajectory that went on from here; it keeps the sequence and the environment."""
    then: Trajectory
    """A copy of it as it stood here."""
    length: int
    """Tokens of the sequence at this point."""
    snapshot: Any
    """Handle of the environment's state."""
    entropies: list[float]
    """Of the decision taken here: the owner's own list, which fills while it decides."""
    grown: int = 0

    @property
    def replays(self) -> bool:
        """Whether all steps are taken again to return here: a record of them can be replayed."""
        return self.then.env.fork_kind == "replay" or hasattr(self.snapshot, "replay")


@dataclass(kw_only=True, slots=True)
class Stands:
    """The kept states of one tree; with `planner` None nothing is kept."""

    planner: Planner | None
    engine: Engine
    seconds: float
    """Time limit of one call of an environment."""
    kept: list[Stand] = field(default_factory=list)

    async def keep(self, t: Trajectory) -> None:
        """Remember where `t` stands; where it was born, its parent has stood before it."""
        if self.planner is None or (t.own_sampled == 0 and t.lineage):
            return
        self.kept.append(
            Stand(
                owner=t,
                then=replace(t, turn=max(t.turn, 0), decision=[], entropies=[]),
                length=self.engine.length(t.seq),
                snapshot=await ask(t.env, "snapshot", seconds=self.seconds),
                entropies=t.entropies,
            )
        )

    def needs(self, t: Trajectory) -> bool:
        """Return whether the sequence and the environment of `t`, which has ended, stay."""
        if t.end == "error":
            self.kept = [stand for stand in self.kept if stand.owner is not t]
        return any(stand.owner is t for stand in self.kept)

    def owners(self) -> list[Trajectory]:
        """Return the trajectories whose sequences and environments were kept, each once."""
        return list({id(stand.owner): stand.owner for stand in self.kept}.values())

    def chosen(
        self, spare: int, number: int, seed: int, ended: Sequence[Trajectory]
    ) -> list[tuple[Stand, int]]:
        """Return where the planner wants to grow in round `number`, and how many leaves.

        `ended`: all trajectories. Of a root that ended with its first decision only the beginning
        is left, in its name.
        """
        if self.planner is None or spare <= 0:
            return []
        self.kept.sort(key=lambda stand: (stand.then.turn, stand.owner.lineage))
        spots = [
            Spot(
                lineage=stand.owner.lineage,
                turn=stand.then.turn,
                entropies=stand.entropies,
                grown=stand.grown,
                won=stand.owner.won,
                seed=seed,
            )
            for stand in self.kept
        ]
        stands = list(self.kept)
        known = {spot.lineage[:1] for spot in spots}
        for t in sorted(ended, key=lambda t: t.lineage):
            if len(t.lineage) == 1 and t.lineage not in known:
                stands.append(stands[0])
                spots.append(replace(spots[0], lineage=t.lineage, entropies=[], won=t.won))
        wanted = self.planner.plan(spots, spare, number)[:spare]
        return [(stands[index], wanted.count(index)) for index in dict.fromkeys(wanted)]
