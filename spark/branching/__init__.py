"""Where a tree branches (rules), grows further (planners), and how often it may (budgets)."""

from spark.branching.budgets import TreeBudget
from spark.registry import Registry

__all__ = ["PLANNERS", "RULES", "SCORES", "TreeBudget"]

RULES = Registry(
    "rule",
    {
        "spark": "spark.branching.rules:SparkRule",
        "entropy": "spark.branching.rules:EntropyRule",
        "random": "spark.branching.rules:RandomRule",
        "fixed": "spark.branching.rules:FixedRule",
        "none": "spark.branching.rules:NoRule",
        "arpo": "spark.branching.rules:ArpoRule",
        "segment": "spark.branching.rules:SegmentRule",
        "score": "spark.branching.score:ScoreRule",
    },
)
SCORES = Registry("score", {"novelty": "spark.branching.score:state_novelty"})
PLANNERS = Registry(
    "planner",
    {
        "refill": "spark.branching.planners:RefillPlanner",
        "random": "spark.branching.planners:RandomPlanner",
        "entropy": "spark.branching.planners:EntropyPlanner",
        "success": "spark.branching.planners:SuccessPlanner",
    },
)
