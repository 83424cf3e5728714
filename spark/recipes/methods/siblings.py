"""The methods Spark stands beside, with the sizes they were published with."""

from __future__ import annotations

from spark.recipes.config import Recipe
from spark.recipes.methods.base import method
from spark.train.replay import ReplayConfig


def chain(recipe: Recipe) -> Recipe:
    """Return GRPO: as many independent trajectories as the recipe's trees have leaves."""
    return method(recipe, rule="none", roots=recipe.rollout.leaves)


def arpo(recipe: Recipe) -> Recipe:
    """Return branching where the answer to an observation begins less sure than the first one.

    ARPO (arXiv 2507.19849): P = 0.5 + 0.2 dH after each observation, beams of 2, 16 leaves of
    which 8 are roots, what is left over started anew; GRPO over the leaves.
    """
    return method(
        recipe,
        rule="arpo",
        probability=0.5,
        entropy_weight=0.2,
        branch_at="flagged",
        leaves=16,
        roots=8,
        width=2,
        planner="refill",
    )


def tree_grpo(recipe: Recipe) -> Recipe:
    """Return chains that are afterwards grown from random nodes, credited within and across trees.

    Tree-GRPO (arXiv 2509.21240) with M=2 chains, N=2 nodes each, L=1 round: six leaves.
    """
    return method(
        recipe,
        rule="none",
        planner="random",
        plan_spots=2,
        plan_rounds=1,
        leaves=6,
        roots=2,
        credit={"scheme": "tree"},
    )


def treepo(recipe: Recipe) -> Recipe:
    """Return a split in two after every segment; leaves left over grow from earlier segments.

    TreePO (arXiv 2508.17445): width 2, at most 16 leaves, subgroups per depth. Its 512 tokens are
    a fourteenth of its longest answers; 16 are about that of an episode of the small recipes.
    """
    return method(
        recipe,
        rule="segment",
        segment_tokens=16,
        leaves=16,
        roots=2,
        width=2,
        planner="random",
        plan_spots=8,
        plan_rounds=1,
        credit={"scheme": "depth"},
    )


def at2po(recipe: Recipe) -> Recipe:
    """Return trees that grow in rounds from their least sure turns, credited turn by turn.

    In the style of AT2PO (arXiv 2601.04767): top-K turns by entropy with a penalty for those
    already expanded, values backed up per turn. Sizes as Spark's; its own objective, an importance
    ratio per turn, is not part of this.
    """
    return method(
        recipe,
        rule="none",
        planner="entropy",
        plan_spots=2,
        plan_rounds=2,
        leaves=8,
        roots=4,
        credit={"scheme": "node", "leaf_weights": "branching"},
    )


def gigpo(recipe: Recipe) -> Recipe:
    """Return chains whose steps are compared with all steps taken from the same state.

    GiGPO (arXiv 2505.10978): 8 chains, discount 0.95, the step's advantage with weight 1.
    """
    return method(recipe, rule="none", leaves=8, roots=8, credit={"scheme": "anchor"})


def spear(recipe: Recipe) -> Recipe:
    """Return chains with a bonus for novelty that gives way to imitation of the best so far.

    SPEAR (arXiv 2509.22601): a replay buffer of good trajectories, judged anew against the median
    return, and an intrinsic reward that fades; there it counts tool calls, here novel states.
    """
    return method(
        recipe,
        rule="none",
        roots=recipe.rollout.leaves,
        credit={"novelty_bonus": 0.1},
        replay=ReplayConfig(size=256),
    )
