"""The novelty of states, and rules that ask somebody else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.branching.base import Decision, State
from spark.branching.score import ScoreRule
from spark.novelty import novelties

STATE = State(text="", entropies=[], turn=3, horizon=9, lineage=(1, 0), seed=7)
SHELF, DRAWER = "you arrive at shelf 1 . on it is a pen", "the drawer is closed"
KITCHEN = "a stove and nine burning pans glow red"
BAGS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=2, max_size=9)


def novelty(states: list[list]) -> float:
    return novelties(states)[-1]


def test_novelty_falls_with_every_repetition() -> None:
    """1 / (sqrt(k) + 0.001) after k earlier visits, by the formula."""
    words = SHELF.split()
    values = [novelty([DRAWER.split(), *[words] * (k + 1)]) for k in range(1, 10)]
    assert values == sorted(values, reverse=True)
    assert abs(values[0] - 1 / 1.001) < 0.01 and abs(values[8] - 1 / 3.001) < 0.01
    assert novelty([words]) == 1000.0
    assert novelty([DRAWER.split(), words, KITCHEN.split()]) > 10


@given(BAGS)
def test_novelty_does_not_depend_on_the_order_of_words_or_of_the_past(bags: list) -> None:
    mixed = [bag[::-1] for bag in bags]
    assert novelty(mixed) == novelty(bags)
    assert 0 <= novelty(bags) <= 1000
    assert novelty([*bags, bags[-1]]) <= 1.0
    assert novelties(bags) == [novelty(bags[: k + 1]) for k in range(len(bags))]


def test_novel_states_branch_and_familiar_ones_do_not() -> None:
    rule = ScoreRule(width=3, score_above=5.0)
    seen = (DRAWER, SHELF, DRAWER, SHELF)
    assert rule.decide(replace(STATE, observations=(*seen, DRAWER))) == Decision()
    novel = replace(STATE, observations=(*seen, KITCHEN))
    assert rule.decide(novel) == Decision(width=3, trigger="score")


def turn_of(state: State) -> float:
    return state.turn


async def later(state: State) -> float:
    await asyncio.sleep(0)
    return state.turn + 0.5


def test_scores_of_the_user_plain_and_async() -> None:
    rule = ScoreRule(score=f"{__name__}:turn_of", score_above=2)
    assert rule.decide(STATE) == Decision(width=2, trigger="score")
    assert rule.decide(replace(STATE, turn=2)) == Decision()
    waiting = ScoreRule(score=f"{__name__}:later", score_above=3)
    for each in (rule, waiting):
        assert asyncio.run(each.decide_async(STATE)) == Decision(width=2, trigger="score")
    with pytest.raises(ValueError, match="is async, which only a rollout can wait for"):
        waiting.decide(STATE)
