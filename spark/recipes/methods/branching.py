"""Spark, what this project changes about it, and rules in its place; eight leaves each."""

from __future__ import annotations

from typing import Any

from spark.recipes.config import Recipe
from spark.recipes.methods.base import method

PAPER: dict[str, Any] = {"leaves": 8, "roots": 4, "width": 2}
"""N, M and B of Spark (arXiv 2601.20209, appendix B.4)."""


def spark(recipe: Recipe) -> Recipe:
    """Return the paper's method: the tag, the next decision, first come first served.

    Every leaf counts the same and a shared node is trained once per leaf (arXiv 2601.20209,
    section 3 and appendix B.4: M=4, N=8, B=2).
    """
    return method(recipe, rule="spark", credit={"once_per_leaf": True}, **PAPER)


def spark_paced(recipe: Recipe) -> Recipe:
    """Return Spark with the spare leaves released evenly over the episode, and unbiased weights.

    First come first served spends them in the first turns, where little is shared.
    """
    weights = {"leaf_weights": "branching"}
    return method(recipe, rule="spark", pacing="paced", credit=weights, **PAPER)


def spark_here(recipe: Recipe) -> Recipe:
    """Return paced Spark that samples the flagged decision itself again, not the one after it."""
    return method(recipe, rule="spark", pacing="paced", branch_at="flagged", **PAPER)


def entropy_exact(recipe: Recipe) -> Recipe:
    """Return branching where the decision's exact mean entropy is high, instead of at the tag.

    The recipe's own threshold is kept: what counts as unsure depends on the policy.
    """
    return method(recipe, rule="entropy", pacing="paced", **PAPER)


def random(recipe: Recipe) -> Recipe:
    """Return the control of all rules: a decision branches with probability 0.4.

    That is the rate at which the paper's policy flags (its figure for step 60: 0.41).
    """
    return method(recipe, rule="random", probability=0.4, pacing="paced", **PAPER)


def fixed(recipe: Recipe) -> Recipe:
    """Return branching after the second and third decision, which nobody had to learn.

    First come first served, the paper's budget is spent there as well: the ablation it leaves out.
    """
    return method(recipe, rule="fixed", fixed_turns=(1, 2), **PAPER)


def novelty(recipe: Recipe) -> Recipe:
    """Return branching in states unlike those before them (Never Give Up, arXiv 2002.06038).

    `spark train novelty --train.credit.novelty_bonus` adds the novelty to the reward, as there.
    """
    return method(recipe, rule="score", score="novelty", pacing="paced", **PAPER)


def explorer(recipe: Recipe) -> Recipe:
    """Return branching where a score of your own says so: `--rollout.score module:function`.

    LLM-Explorer (arXiv 2505.15293) lets a second model propose how to explore; here it says where.
    The recipe's own score and threshold are kept.
    """
    return method(recipe, rule="score", pacing="paced", **PAPER)


def return_to_success(recipe: Recipe) -> Recipe:
    """Return trees that grow, once some of four roots have won and some not, from the winners.

    Four more leaves start from states of the winning trajectories (Go-Explore's idea, arXiv
    1901.10995), from where winning is neither sure nor hopeless: there comparing tells most. Trees
    with nothing to compare cost four leaves, not eight. No baseline depends on its own leaves.
    """
    credit = {"scheme": "nested", "leaf_weights": "branching"}
    plan: dict[str, Any] = {"planner": "success", "plan_spots": 4}
    return method(recipe, rule="none", **plan, credit=credit, **PAPER)
