"""Where a tree branches (rules) and how often it may (budgets)."""

from spark.branching.budgets import TreeBudget
from spark.registry import Registry

__all__ = ["RULES", "TreeBudget"]

RULES = Registry(
    "rule",
    {
        "spark": "spark.branching.rules:SparkRule",
        "entropy": "spark.branching.rules:EntropyRule",
        "random": "spark.branching.rules:RandomRule",
        "fixed": "spark.branching.rules:FixedRule",
        "none": "spark.branching.rules:NoRule",
    },
)
