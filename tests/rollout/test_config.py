"""The configuration refuses what makes no sense and names the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from spark.branching.planners import EntropyPlanner
from spark.branching.rules import EntropyRule, FixedRule, NoRule, RandomRule, SparkRule
from spark.rollout import RolloutConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("leaves", 0),
        ("roots", 0),
        ("roots", 9),
        ("width", 1),
        ("horizon", 0),
        ("max_tokens", 0),
        ("branch_at", "later"),
        ("pacing", "slow"),
        ("entropy_of", "median"),
        ("pace_turns", 0),
        ("root_cap", -1),
        ("max_generated_tokens", 7),
        ("max_seconds", 0),
        ("probability", 1.5),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.0),
        ("invalid_limit", 0),
        ("step_seconds", 0),
        ("segment_tokens", 0),
        ("plan_spots", 0),
        ("plan_rounds", 0),
    ],
)
def test_bad_values_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value!r} must"):
        RolloutConfig(**{field: value})


def test_unknown_rule_and_impossible_switch() -> None:
    with pytest.raises(ValueError, match="unknown rule 'sparkle'; known: arpo, entropy"):
        RolloutConfig(rule="sparkle")
    with pytest.raises(ValueError, match='branch_at="within" needs a rule with a trigger'):
        RolloutConfig(rule="random", branch_at="within")


@pytest.mark.parametrize("way", [{"rule": "random"}, {"rule": "none", "planner": "refill"}])
def test_what_could_never_branch_is_refused(way: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^roots=4 takes all leaves=4, nothing can branch"):
        RolloutConfig(leaves=4, roots=4, **way)
    assert RolloutConfig(leaves=4, roots=4, rule="none").start == 4


def test_the_fixed_rule_needs_its_turns() -> None:
    with pytest.raises(ValueError, match=r"fixed_turns=\(\) never branches"):
        RolloutConfig(rule="fixed")


def test_unknown_planners_and_scores() -> None:
    with pytest.raises(ValueError, match="unknown planner 'mcts'; known: entropy, random, refill"):
        RolloutConfig(planner="mcts")
    with pytest.raises(ValueError, match="unknown score 'value'; known: novelty"):
        RolloutConfig(rule="score", score="value")
    with pytest.raises(ValueError, match="score='nowhere:value' cannot be imported"):
        RolloutConfig(rule="score", score="nowhere:value")


class Plain:
    """A rule that is no dataclass."""

    watch = None


@dataclass
class Demanding:
    """A rule with a field of its own that has no default."""

    sureness: float
    watch: None = None


def test_a_rule_or_planner_of_ones_own_is_a_dataclass_that_can_be_filled() -> None:
    for field in ("rule", "planner"):
        told = f"{field}='{__name__}:Plain' is no dataclass: write @dataclass above its class"
        with pytest.raises(ValueError, match=told):
            RolloutConfig(**{field: f"{__name__}:Plain"})
    with pytest.raises(ValueError, match=r"rule '.*Demanding': missing a required .*'sureness'"):
        RolloutConfig(rule=f"{__name__}:Demanding")


def test_rules_get_their_fields() -> None:
    assert RolloutConfig(width=3).make_rule() == SparkRule(width=3)
    entropy = RolloutConfig(rule="entropy", entropy_threshold=0.3, entropy_of="max").make_rule()
    assert entropy == EntropyRule(width=2, entropy_threshold=0.3, entropy_of="max")
    assert RolloutConfig(rule="random", probability=0.7).make_rule() == RandomRule(probability=0.7)
    fixed = RolloutConfig(rule="fixed", fixed_turns=(2,)).make_rule()
    assert fixed == FixedRule(fixed_turns=(2,))
    assert RolloutConfig(rule="none", width=1).make_rule() == NoRule()


def test_planners_get_their_fields() -> None:
    config = RolloutConfig(planner="entropy", plan_spots=3, plan_rounds=4, plan_penalty=1.0)
    planner = EntropyPlanner(plan_spots=3, plan_rounds=4, plan_penalty=1.0)
    assert config.make_planner() == planner
    assert RolloutConfig().make_planner() is None
    assert RolloutConfig(rule="none", planner="random").start == 4


def test_budget_defaults() -> None:
    paced = RolloutConfig(horizon=20).make_budget()
    assert paced.available(turn=3, lineage=(0,)) == 1
    assert paced.available(turn=19, lineage=(0,)) == 2
    assert RolloutConfig(pace_turns=10).make_budget().available(turn=1, lineage=(0,)) == 1
    first_come = RolloutConfig(pacing="first_come").make_budget()
    assert first_come.available(turn=0, lineage=(0,)) == 4
    assert RolloutConfig(root_cap=1).make_budget().available(turn=19, lineage=(0,)) == 1
    chains = RolloutConfig(rule="none")
    assert chains.start == 8
    assert chains.make_budget().available(turn=19, lineage=(0,)) == 0
