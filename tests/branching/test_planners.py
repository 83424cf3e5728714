"""Planners choose what they say, and the same again for a seed."""

from __future__ import annotations

from collections import Counter

from spark.branching.base import Spot
from spark.branching.planners import (
    EntropyPlanner,
    RandomPlanner,
    RefillPlanner,
    SuccessPlanner,
)


def spots(
    seed: int = 0, grown: tuple[int, ...] = (0,) * 6, won: tuple[tuple[int, ...], ...] = ()
) -> list[Spot]:
    """The prompt, two states of root 0, three of root 1, of which one left it by a fork."""
    lineages = [(), (0,), (1, 0), (0,), (1, 0), (1, 1)]
    means = [None, 0.2, 0.9, 0.7, 1.5, 0.1]
    return [
        Spot(
            lineage=lineage,
            turn=index,
            entropies=[] if mean is None else [mean - 0.1, mean + 0.1],
            grown=grown[index],
            won=lineage in won,
            seed=seed,
        )
        for index, (lineage, mean) in enumerate(zip(lineages, means, strict=True))
    ]


def test_refill_starts_at_the_prompt_once() -> None:
    assert RefillPlanner().plan(spots(), 3, 0) == [0, 0, 0]
    assert RefillPlanner().plan(spots(), 3, 1) == []


def test_random_draws_evenly_from_every_root_and_its_beginning() -> None:
    planner = RandomPlanner(plan_spots=2, plan_rounds=2)
    drawn = [planner.plan(spots(seed), 9, 0) for seed in range(1500)]
    assert all(len(choice) == 4 for choice in drawn)
    first = Counter(index for choice in drawn for index in choice[::2])
    second = Counter(index for choice in drawn for index in choice[1::2])
    assert set(first) == {0, 1, 3} and set(second) == {0, 2, 4, 5}
    # five standard errors of 3000 draws
    assert all(abs(count / 3000 - 1 / 3) < 0.05 for count in first.values())
    assert all(abs(count / 3000 - 1 / 4) < 0.05 for count in second.values())
    assert planner.plan(spots(7), 9, 0) == planner.plan(spots(7), 9, 0)
    assert any(planner.plan(spots(s), 9, 0) != planner.plan(spots(s), 9, 1) for s in range(9))
    assert planner.plan(spots(), 9, 2) == []


def test_entropy_takes_the_least_sure_and_penalises_what_was_grown() -> None:
    planner = EntropyPlanner(plan_spots=2, plan_rounds=2, plan_penalty=0.5)
    assert planner.plan(spots(), 9, 0) == [4, 2]
    assert planner.plan(spots(grown=(0, 0, 1, 0, 1, 0)), 9, 1) == [4, 3]
    assert planner.plan(spots(), 9, 2) == []


def test_success_draws_from_winners_while_others_lost() -> None:
    planner = SuccessPlanner(plan_spots=3)
    drawn = [planner.plan(spots(seed, won=((0,), (1, 1))), 9, 0) for seed in range(1500)]
    assert all(len(choice) == 3 for choice in drawn)
    counts = Counter(index for choice in drawn for index in choice)
    assert set(counts) == {1, 3, 5}
    # five standard errors of 4500 draws
    assert all(abs(count / 4500 - 1 / 3) < 0.036 for count in counts.values())
    assert planner.plan(spots(won=((0,),)), 9, 1) == []
    assert planner.plan(spots(), 9, 0) == []
    assert planner.plan(spots(won=((0,), (1, 0), (1, 1))), 9, 0) == []
