"""Each rule branches exactly where it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spark.branching import RULES
from spark.branching.base import Decision, State
from spark.branching.rules import (
    ArpoRule,
    EntropyRule,
    FixedRule,
    NoRule,
    RandomRule,
    SegmentRule,
    SparkRule,
)

STATE = State(text="", entropies=[0.5, 1.5], turn=3, horizon=9, lineage=(1, 0), seed=7)
ALONE = Decision()


def test_spark_follows_the_tag() -> None:
    flagged = replace(STATE, text="<explore> where is it </explore> <action> look </action>")
    assert SparkRule(width=3).decide(flagged) == Decision(width=3, trigger="explore")
    assert SparkRule().decide(replace(STATE, text="explore <action> look </action>")) == ALONE
    assert SparkRule().watch is not None


def test_entropy_follows_mean_maximum_or_the_engine() -> None:
    fork = Decision(width=2, trigger="entropy")
    assert EntropyRule(entropy_threshold=0.9).decide(STATE) == fork
    assert EntropyRule(entropy_threshold=1.0).decide(STATE) == ALONE
    assert EntropyRule(entropy_threshold=1.4, entropy_of="max").decide(STATE) == fork
    assert EntropyRule(entropy_threshold=1.5, entropy_of="max").decide(STATE) == ALONE
    paused = replace(STATE, sample_trigger="entropy")
    assert EntropyRule(entropy_threshold=9.0).decide(paused) == fork
    assert EntropyRule().decide(replace(STATE, entropies=[])) == ALONE
    assert EntropyRule(entropy_threshold=0.7).watch.entropy_above == 0.7


def test_random_has_its_probability_and_repeats_itself() -> None:
    rule = RandomRule(probability=0.3)
    states = [replace(STATE, seed=s, turn=t) for s in range(100) for t in range(20)]
    wishes = [rule.decide(state) for state in states]
    rate = sum(wish.width == 2 for wish in wishes) / len(wishes)
    # five standard errors
    assert abs(rate - 0.3) < 5 * (0.3 * 0.7 / len(wishes)) ** 0.5
    assert wishes == [rule.decide(state) for state in states]
    lineages = [rule.decide(replace(STATE, lineage=(n,))) for n in range(50)]
    assert len(set(lineages)) == 2
    assert not any(RandomRule(probability=0.0).decide(state).trigger for state in states)
    assert all(RandomRule(probability=1.0).decide(state).trigger for state in states)


def test_fixed_and_none() -> None:
    assert FixedRule(fixed_turns=(3,)).decide(STATE) == Decision(width=2, trigger="fixed")
    assert FixedRule(fixed_turns=(2, 4)).decide(STATE) == ALONE
    assert NoRule().decide(STATE) == ALONE


def test_arpo_branches_more_often_where_the_entropy_has_risen() -> None:
    def rate(now: float, first: float) -> float:
        rule = ArpoRule(probability=0.5, entropy_weight=0.2)
        states = [
            replace(
                STATE,
                seed=s,
                entropies=[now] * 20 + [99.0],
                first_entropies=(first,),
                max_entropy=2,
            )
            for s in range(2000)
        ]
        return sum(rule.decide(state).width == 2 for state in states) / len(states)

    # five standard errors
    for now, first, chance in ((0.5, 0.5, 0.5), (2.0, 0.0, 0.7), (0.0, 2.0, 0.3)):
        assert abs(rate(now, first) - chance) < 5 * 0.5 / 2000**0.5
    first_turn = replace(STATE, turn=0, entropies=[5.0], max_entropy=1.0)
    assert ArpoRule(probability=1.0).decide(first_turn) == ALONE


def test_segments_end_where_their_tokens_are_complete() -> None:
    rule, said = SegmentRule(width=4, segment_tokens=10), [0.0] * 4
    ends = [
        total
        for total in range(4, 44, 4)
        if rule.decide(replace(STATE, entropies=said, path_sampled=total)).width == 4
    ]
    assert ends == [12, 20, 32, 40]


def test_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown rule 'sparks'; known: arpo, entropy,"):
        RULES["sparks"]
