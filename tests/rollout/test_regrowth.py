"""Growing finished trees further: where, in whose name, at what cost, and what fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import bigram
import pytest
from corridor import Corridor, CorridorSource
from reference_engine import ReferenceEngine
from rolling import CONFIG, TASKS, chat, roll

from spark.branching import PLANNERS
from spark.branching.base import Spot, State
from spark.rollout import RolloutConfig
from spark.rollout.chat import command_of

CHAINS = replace(CONFIG, rule="none", planner="random", leaves=8, roots=2)


def test_random_nodes_of_finished_chains_are_grown_from() -> None:
    """Two chains, two states of each: six leaves, as Tree-GRPO makes them."""
    for tree in roll(CHAINS):
        leaves = tree.info["leaves"]
        assert len(leaves) == 6
        grown = [leaf for leaf in leaves if len(leaf["lineage"]) == 2]
        anew = [leaf for leaf in leaves if leaf["lineage"][0] > 1]
        assert len(grown) + len(anew) == 4
        assert sum(node.trigger == "random" for node in tree.nodes) >= (1 if grown else 0)
        assert tree.info["forks"] == len(grown)


def test_entropy_grows_from_the_least_sure_decision_of_all() -> None:
    config = replace(CHAINS, planner="entropy", plan_spots=1, plan_rounds=1)
    for tree in roll(config):
        (fork,) = (index for index, node in enumerate(tree.nodes) if node.trigger == "entropy")
        kids = tree.children()[fork]
        assert len(kids) == 2
        means = {
            index: sum(node.entropies) / sum(node.sampled)
            for index, node in enumerate(tree.nodes)
            if node.turn > 0 and index != max(kids)
        }
        latest = {leaf["node"]: leaf["lineage"] for leaf in tree.info["leaves"]}
        new = next(leaf for leaf, lineage in latest.items() if len(lineage) == 2)
        before = set(means) - set(tree.path(new))
        assert max(before, key=lambda index: means[index]) in kids


def test_success_grows_from_winners_where_others_lost() -> None:
    config = replace(CHAINS, planner="success", plan_spots=2, roots=3, leaves=5, horizon=16)
    tasks = ["corridor/1/1"] * 8
    mixed = 0
    trees = roll(config, tasks)
    for tree in trees:
        grown = [leaf for leaf in tree.info["leaves"] if len(leaf["lineage"]) > 1]
        roots = [leaf for leaf in tree.info["leaves"] if len(leaf["lineage"]) == 1]
        winners = {leaf["lineage"][0] for leaf in roots if leaf["won"]}
        assert len(roots) == 3
        if 0 < len(winners) < 3:
            mixed += 1
            assert len(grown) == 2 and {leaf["lineage"][0] for leaf in grown} <= winners
        else:
            assert not grown
    assert 0 < mixed < len(trees)


def test_a_rounds_growth_is_seen_by_the_next() -> None:
    seen: list[list[Spot]] = []

    @dataclass(kw_only=True, frozen=True)
    class Deepest:
        trigger = "deepest"

        def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
            seen.append(list(spots))
            return [len(spots) - 1]

    PLANNERS["deepest"] = Deepest
    (tree,) = roll(replace(CHAINS, planner="deepest", leaves=5), tasks=TASKS[:1])
    assert len(tree.leaves()) == 5
    assert [len(spots) for spots in seen] == sorted(len(spots) for spots in seen)
    assert max(spot.grown for spot in seen[-1]) >= 1
    for spots in seen:
        places = [(spot.turn, spot.lineage) for spot in spots]
        assert places == sorted(set(places)), "each state once"


class Slow(Corridor):
    """Forks by replay and counts what it repeats."""

    fork_kind = "replay"


@dataclass(kw_only=True, frozen=True)
class ThirdTurn:
    trigger = "third"

    def plan(self, spots: Sequence[Spot], spare: int, number: int) -> list[int]:
        return [i for i, spot in enumerate(spots) if spot.turn == 2] * 2 if number == 0 else []


def test_replayed_steps_count_the_return_and_every_fork() -> None:
    PLANNERS["third"] = ThirdTurn
    config = replace(CHAINS, planner="third", roots=1, leaves=3, constrain=True)
    (tree,) = roll(config, tasks=["corridor/9/5"], source=CorridorSource(Slow))
    assert [leaf["lineage"] for leaf in tree.info["leaves"]] == [[0], [0, 1], [0, 2]]
    (fork,) = (node for node in tree.nodes if node.trigger)
    assert (fork.trigger, fork.turn) == ("third", 1)
    said = [command_of(chat().decode(node.tokens)) for node in tree.nodes if 0 <= node.turn < 2]
    steps = sum(command is not None for command in said)
    # the steps to return there, and again for each fork; the root's own fork repeats nothing
    assert tree.info["env_steps_replayed"] == 3 * steps > 0


def test_a_state_that_cannot_be_restored_costs_its_leaf_only() -> None:
    class Forgetful(Corridor):
        def restore(self, snapshot: tuple[Any, ...]) -> None:
            if getattr(self, "room", None) is not None and len(self.actions) > 1:
                raise RuntimeError("the save is gone")
            super().restore(snapshot)

    trees = roll(CHAINS, source=CorridorSource(Forgetful))
    assert any("the save is gone" in e["error"] for tree in trees for e in tree.info["errors"])
    for tree in trees:
        assert len(tree.leaves()) >= 2


def test_grown_trees_agree_with_the_engine_and_repeat() -> None:
    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    trees = roll(replace(CHAINS, plan_rounds=2, leaves=9), engine=engine)
    stats = engine.stats()
    assert stats["generated"] == sum(tree.info["generated"] for tree in trees)
    assert stats["reused"] == sum(tree.info["reused"] for tree in trees) > 0
    for jitter in (1, 2):
        shaken = ReferenceEngine(bigram.next_logits, bigram.tokenizer(), jitter=jitter)
        again = roll(replace(CHAINS, plan_rounds=2, leaves=9), engine=shaken)
        assert [t.nodes for t in again] == [t.nodes for t in trees]


def test_grown_decisions_are_admissible_where_they_continue() -> None:
    for tree in roll(replace(CHAINS, planner="entropy", plan_spots=3, plan_rounds=2)):
        for node in tree.nodes[1:]:
            assert not node.invalid or command_of(chat().decode(node.tokens)) is None


def test_rules_see_observations_and_the_first_entropies() -> None:
    states: list[State] = []

    def remember(state: State) -> float:
        states.append(state)
        return 0.0

    import test_regrowth as here

    # the rule finds it by name, as it would a user's
    here.remember = remember  # type: ignore[attr-defined]
    config = RolloutConfig(rule="score", score="test_regrowth:remember", horizon=6, max_tokens=16)
    (tree,) = roll(config, tasks=TASKS[:1])
    assert states
    for state in states:
        assert len(state.observations) == state.turn + 2
        assert state.observations[0].startswith("find the key")
        assert (len(state.first_entropies) > 0) == (state.turn > 0)
        assert state.path_sampled >= len(state.entropies) > 0
        assert state.max_entropy == pytest.approx(3.9, abs=0.2)
    assert tree.info["forks"] == 0


def test_a_root_that_ends_with_its_first_decision_is_grown_from_the_beginning() -> None:
    config = replace(CHAINS, roots=2, leaves=4, horizon=1, plan_spots=1)
    for seed in range(5):
        (tree,) = roll(config, tasks=["corridor/4/5"], seed=seed)
        assert [leaf["lineage"] for leaf in tree.info["leaves"]] == [[0], [1], [2], [3]]
