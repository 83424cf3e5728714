"""Budgets: what is granted, when, and never more than there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.branching import TreeBudget


def test_first_come_gives_everything_at_once() -> None:
    budget = TreeBudget(leaves=8, roots=4)
    assert budget.grant(1, turn=0, lineage=(0,)) == 1
    assert budget.grant(9, turn=0, lineage=(1,)) == 3
    assert budget.grant(1, turn=50, lineage=(2,)) == 0


def test_paced_releases_evenly() -> None:
    budget = TreeBudget(leaves=8, roots=4, pace_turns=20)
    available = [budget.available(turn=turn, lineage=(0,)) for turn in range(20)]
    assert [available.index(k) + 1 for k in range(1, 5)] == [4, 8, 12, 16]
    assert max(available) == 4


def test_what_is_left_can_be_used_late() -> None:
    budget = TreeBudget(leaves=8, roots=4, pace_turns=10)
    assert budget.grant(4, turn=30, lineage=(0,)) == 4


def test_root_cap_limits_one_family() -> None:
    budget = TreeBudget(leaves=8, roots=4, root_cap=2)
    assert budget.grant(4, turn=0, lineage=(0, 1)) == 2
    assert budget.grant(4, turn=0, lineage=(0, 0, 1)) == 0
    assert budget.grant(4, turn=0, lineage=(3,)) == 2


def test_tokens_and_seconds() -> None:
    now = [100.0]
    budget = TreeBudget(leaves=8, roots=4, tokens=100, seconds=5.0, clock=lambda: now[0])
    assert budget.leaf_tokens == 12
    assert not budget.expired()
    now[0] = 105.0
    assert budget.expired()
    assert TreeBudget(leaves=1, roots=1).leaf_tokens is None
    assert not TreeBudget(leaves=1, roots=1).expired()


def test_a_closed_budget_grants_nothing() -> None:
    budget = TreeBudget(leaves=8, roots=4)
    budget.close()
    assert budget.grant(1, turn=0, lineage=(0,)) == 0


REQUESTS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 4), st.integers(1, 4)))


@given(
    spare=st.integers(0, 9),
    pace=st.none() | st.floats(1, 30),
    cap=st.none() | st.integers(0, 5),
    requests=REQUESTS,
)
def test_never_more_than_there_is(
    spare: int, pace: float | None, cap: int | None, requests: list[tuple[int, int, int]]
) -> None:
    budget = TreeBudget(leaves=5 + spare, roots=5, pace_turns=pace, root_cap=cap)
    granted: dict[int, int] = {}
    for turn, root, wanted in sorted(requests):
        before = budget.available(turn=turn, lineage=(root,))
        got = budget.grant(wanted, turn=turn, lineage=(root,))
        assert got == min(wanted, before)
        granted[root] = granted.get(root, 0) + got
    assert sum(granted.values()) <= spare
    assert cap is None or max(granted.values(), default=0) <= cap


@given(spare=st.integers(0, 9), pace=st.floats(1, 30))
def test_more_is_released_with_every_turn_until_all_is(spare: int, pace: float) -> None:
    budget = TreeBudget(leaves=1 + spare, roots=1, pace_turns=pace)
    available = [budget.available(turn=turn, lineage=(0,)) for turn in range(31)]
    assert all(a <= b for a, b in pairwise(available))
    assert available[-1] == spare


@pytest.mark.parametrize("turns", [12, 15, 20])
def test_paced_forks_share_half_an_episode(turns: int) -> None:
    """If a fork happens whenever a leaf is released, children inherit half of it on average."""
    budget = TreeBudget(leaves=8, roots=4, pace_turns=turns)
    shared = [
        turn + 1 for turn in range(turns) for _ in range(budget.grant(9, turn=turn, lineage=(0,)))
    ]
    assert len(shared) == 4
    assert 0.45 <= sum(shared) / 4 / turns <= 0.6
