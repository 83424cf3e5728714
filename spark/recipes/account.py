"""What an arm cost, and what its rollouts looked like, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from spark.core import Tree


@dataclass(kw_only=True, slots=True)
class ArmAccount:
    """What an arm cost, in the names of summary.json: tokens, counts and seconds."""

    leaves: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    trained_tokens: int = 0
    env_steps: int = 0
    env_steps_replayed: int = 0
    forks: int = 0
    rollout_wall_s: float = 0.0
    train_wall_s: float = 0.0
    env_wall_s: float = 0.0
    """Part of the rollout's: waiting for environments to step, summed over trajectories."""

    def add(self, tree: Tree) -> None:
        """Add what growing `tree` cost."""
        self.leaves += len(tree.info["leaves"])
        self.generated_tokens += tree.info["generated"]
        self.reused_tokens += tree.info["reused"]
        self.forks += tree.info["forks"]
        self.env_steps += tree.info["env_steps"]
        self.env_steps_replayed += tree.info["env_steps_replayed"]
        self.env_wall_s += tree.info["env_seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of rollout and training."""
        return self.rollout_wall_s + self.train_wall_s

    @property
    def reused_share(self) -> float:
        """Share of the leaves' sampled tokens that were shared instead of sampled again."""
        return self.reused_tokens / max(1, self.reused_tokens + self.generated_tokens)


def rollout_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """Return figures of one batch of training trees; they are no measure of progress."""
    nodes = [node for tree in trees for node in tree.nodes if any(node.sampled)]
    leaves = [leaf for tree in trees for leaf in tree.info["leaves"]]
    entropies = [
        entropy
        for node in nodes
        for entropy, sampled in zip(node.entropies, node.sampled, strict=True)
        if sampled
    ]
    return {
        "batch_success": fmean([leaf["won"] for leaf in leaves] or [0.0]),
        "turns": fmean([leaf["turns"] for leaf in leaves] or [0.0]),
        "batch_leaves": float(len(leaves)),
        "invalid_share": fmean([node.invalid for node in nodes] or [0.0]),
        "entropy": fmean(entropies or [0.0]),
    }
