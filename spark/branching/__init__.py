"""Where a tree branches (rules) and how often it may (budgets)."""

from spark.registry import Registry

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
