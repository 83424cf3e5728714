"""What a growing tree has to show so far: nodes, ended trajectories, failures, costs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from spark.core import Node, Tree
from spark.rollout.trajectory import Trajectory
from spark.rollout.turnstile import Place


@dataclass(kw_only=True, slots=True)
class Account:
    """What a tree cost, in tokens unless the name says otherwise."""

    generated: int = 0
    reused: int = 0
    """Sampled tokens of the shared prefix, summed over the children of forks."""
    forks: int = 0
    """Children made by branching, beyond the trajectory that goes on."""
    env_steps: int = 0
    env_steps_replayed: int = 0
    env_seconds: float = 0.0
    """Seconds from asking environments to step to their answers, summed."""


@dataclass(kw_only=True, slots=True)
class Record:
    """Collects nodes in the order of creation and sorts them into a `Tree` at the end."""

    nodes: list[Node] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    ended: list[Trajectory] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    weight_version: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, node: Node, turn: int, lineage: tuple[int, ...]) -> int:
        """Keep `node` and return its index in the order of creation."""
        self.nodes.append(node)
        self.places.append((turn, lineage))
        return len(self.nodes) - 1

    def close(self, trajectory: Trajectory) -> None:
        """Keep the node that `trajectory` was writing, if any."""
        if trajectory.node is not None:
            place = trajectory.turn, trajectory.lineage
            trajectory.parent = self.add(trajectory.node, *place)
            trajectory.node = None

    def end(self, trajectory: Trajectory) -> None:
        """Keep an ended trajectory, and where its environment was restored in other words."""
        self.ended.append(trajectory)
        for said in getattr(trajectory.env, "differences", ()):
            self.differences.append({"lineage": list(trajectory.lineage), "difference": said})

    def failed(self, error: Exception, turn: int, lineage: tuple[int, ...], node: int) -> None:
        """Keep a failure of `lineage` at `turn`, the last finished node of which is `node`."""
        self.errors.append(
            {
                "node": node,
                "turn": turn,
                "lineage": list(lineage),
                "error": f"{type(error).__name__}: {error}",
            }
        )

    def tree(self, task: str, seed: int, info: dict[str, Any]) -> Tree:
        """Return the tree, sorted by (turn, lineage), which puts parents first."""
        order = sorted(range(len(self.nodes)), key=lambda index: self.places[index])
        rank = {old: new for new, old in enumerate(order)}
        nodes = [self.nodes[old] for old in order]
        for node in nodes:
            if node.parent is not None:
                node.parent = rank[node.parent]
        errors = [error | {"node": rank.get(error["node"])} for error in self.errors]
        info = {
            **info,
            **asdict(self.account),
            "errors": sorted(errors, key=lambda error: (error["turn"], error["lineage"])),
            "replay_differences": sorted(self.differences, key=lambda one: one["lineage"]),
            "seconds": time.monotonic() - self.started,
        }
        tree = Tree(task=task, seed=seed, nodes=nodes, info=info)
        tree.weight_version = self.weight_version
        info["leaves"] = self._leaves(tree, rank)
        return tree

    def _leaves(self, tree: Tree, rank: dict[int, int]) -> list[dict[str, Any]]:
        """Mark the leaves as done and describe them, in their order in the tree."""
        # a trajectory that ended before it sampled anything has no leaf of its own
        last_first = sorted(self.ended, key=lambda t: t.lineage, reverse=True)
        ended = {rank[t.parent]: t for t in last_first}
        leaves = []
        for leaf in tree.leaves() if len(tree.nodes) > 1 else []:
            t = ended[leaf]
            tree.nodes[leaf].done = t.end not in (None, "error")
            described = {"node": leaf, "lineage": list(t.lineage), "end": t.end, "won": t.won}
            leaves.append(described | {"turns": tree.nodes[leaf].turn + 1})
        return leaves
