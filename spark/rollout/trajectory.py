"""One trajectory while it runs: a live sequence, its environment, and the node it is writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from spark.branching.base import BranchAt
from spark.core import Node
from spark.engines.base import Sample
from spark.envs.base import Env

End = Literal["environment", "horizon", "invalid", "tokens", "seconds", "context", "error"]
"""Why a trajectory ended."""


@dataclass(kw_only=True, slots=True, eq=False)
class Trajectory:
    """What a branch of the tree carries from turn to turn; `eq=False`: identity is what counts."""

    seq: int
    """Handle of the engine's sequence."""
    env: Env
    lineage: tuple[int, ...]
    parent: int
    """Index, in the order of creation, of the last finished node."""
    admissible: Sequence[str] | None
    """Commands the environment accepts now; None when it does not say."""
    turn: int = 0
    node: Node | None = None
    """The node being written: the current decision, or the rest of it after a fork inside."""
    decision: list[int] = field(default_factory=list)
    """Tokens of the current decision, those before a fork inside included."""
    entropies: list[float] = field(default_factory=list)
    path_sampled: int = 0
    """Sampled tokens on the path from the prompt."""
    own_sampled: int = 0
    """Those of them that were sampled since this trajectory was born."""
    steps: int = 0
    """Environment steps on the path from the prompt."""
    invalid: int = 0
    """Inadmissible commands so far."""
    observations: tuple[str, ...] = ()
    """What the environment said so far."""
    first_entropies: tuple[float, ...] = ()
    """Of the path's first decision, once it is taken."""
    children: int = 1
    """Number of the next child that a planner starts from it."""
    won: bool = False
    may_branch: bool = True
    """False for the rest of a turn in which it was born by resampling, or was refused."""
    end: End | None = None

    @property
    def earliest(self) -> int:
        """The first turn at which it may still ask for a fork."""
        return self.turn if self.may_branch else self.turn + 1

    def next_turn(self) -> None:
        """Begin the next decision."""
        if self.turn == 0:
            self.first_entropies = tuple(self.entropies)
        self.turn += 1
        self.decision, self.entropies = [], []
        self.may_branch = True

    def born(self, seq: int, env: Env, child: int, at: BranchAt) -> Trajectory:
        """Return child number `child` of a fork at `at`, owning `seq` and `env`."""
        twin = Trajectory(
            seq=seq,
            env=env,
            lineage=(*self.lineage, child),
            parent=self.parent,
            admissible=self.admissible,
            turn=self.turn,
            decision=list(self.decision),
            entropies=list(self.entropies),
            path_sampled=self.path_sampled,
            steps=self.steps,
            invalid=self.invalid,
            observations=self.observations,
            first_entropies=self.first_entropies,
        )
        if at == "next":
            twin.next_turn()
        elif at == "flagged":
            twin.path_sampled -= len(self.decision)
            twin.decision, twin.entropies = [], []
            # one state branches once
            twin.may_branch = False
        return twin

    def add_sampled(self, sample: Sample) -> None:
        """Append what the policy sampled to the node and the decision."""
        count = len(sample.tokens)
        if count == 0:
            return
        if self.node is None:
            self.node = Node(parent=self.parent, turn=self.turn)
        start = len(self.node.tokens)
        self.node.allowed |= {start + offset: ids for offset, ids in sample.allowed.items()}
        self.node.tokens += sample.tokens
        self.node.sampled += [True] * count
        self.node.logprobs += sample.logprobs
        self.node.log_kept_mass += sample.log_kept_mass
        self.node.entropies += sample.entropies
        self.decision += sample.tokens
        self.entropies += sample.entropies
        self.path_sampled += count
        self.own_sampled += count


def add_given(node: Node, tokens: Sequence[int]) -> None:
    """Append tokens that nobody sampled (prompt, observation) to `node`."""
    node.tokens += tokens
    node.sampled += [False] * len(tokens)
    for values in (node.logprobs, node.log_kept_mass, node.entropies):
        values.extend([0.0] * len(tokens))
