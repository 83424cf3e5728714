"""What fails ends its own trajectory, says why, and costs nobody else anything."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import bigram
import pytest
from corridor import Corridor, CorridorSource
from reference_engine import ReferenceEngine
from rolling import CONFIG, TASKS, chat, roll

from spark.core import Tree
from spark.rollout import Event, RolloutError, rollout

UNSCORED = (
    "ValueError: the environment returned {} as its reward, not a finite number: let "
    "its step return 0.0 where there is none"
)


class Raising(Corridor):
    """Fails at the third step of a trajectory that went left first."""

    def step(self, action: str) -> Any:
        if len(self.actions) == 2 and self.actions[0] == "go left":
            raise RuntimeError("the floor gave way")
        return super().step(action)


class Mute(Corridor):
    """Answers with bytes in place of text when the trajectory went left first."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        broken = len(self.actions) == 3 and self.actions[0] == "go left"
        return (b"bytes" if broken else observation, *rest)


class Unscored(Corridor):
    """Rewards the third step of a trajectory that went left first with `given`."""

    given: Any = float("nan")

    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        broken = len(self.actions) == 3 and self.actions[0] == "go left"
        return (observation, self.given if broken else reward, *rest)


class Endless(Unscored):
    given = float("inf")


class Wordy(Unscored):
    given = "much"


class Hanging(Corridor):
    """Never answers the third step of a trajectory that went left first."""

    async def step_async(self, action: str) -> Any:
        if len(self.actions) == 2 and self.actions[0] == "go left":
            await asyncio.sleep(3600)
        return self.step(action)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Raising, "RuntimeError: the floor gave way"),
        (Mute, "TypeError: the environment returned bytes as its observation, not text"),
        (Unscored, UNSCORED.format("nan")),
        (Endless, UNSCORED.format("inf")),
        (Wordy, UNSCORED.format("'much'")),
        (Hanging, "TimeoutError: the environment's step took over 0.05 s"),
    ],
)
def test_a_broken_environment_fails_its_trajectory_only(kind: type[Corridor], message: str) -> None:
    config = replace(CONFIG, rule="none", step_seconds=0.05)
    (tree,) = roll(config, tasks=["corridor/4/5"], source=CorridorSource(kind), seed=3)
    (healthy,) = roll(config, tasks=["corridor/4/5"], seed=3)
    ends = [leaf["end"] for leaf in tree.info["leaves"]]
    assert 0 < ends.count("error") < len(ends)
    assert {error["error"] for error in tree.info["errors"]} == {message}
    for leaf in tree.info["leaves"]:
        path = [tree.nodes[index] for index in tree.path(leaf["node"])]
        twin = next(x for x in healthy.info["leaves"] if x["lineage"] == leaf["lineage"])
        expected = [healthy.nodes[index] for index in healthy.path(twin["node"])]
        # what was computed before the failure is kept
        tokens = [token for node in path for token in node.tokens]
        assert tokens == [token for node in expected for token in node.tokens][: len(tokens)]


def test_nan_logits_fail_their_trajectory_only() -> None:
    left = bigram.tokenizer().convert_tokens_to_ids("left")

    def poisoned(tokens: list[int]) -> Any:
        logits = bigram.next_logits(tokens).clone()
        return logits * float("nan") if tokens.count(left) > 1 else logits

    engine = ReferenceEngine(poisoned, bigram.tokenizer())
    trees = roll(replace(CONFIG, rule="none", leaves=8), engine=engine)
    ends = [leaf["end"] for tree in trees for leaf in tree.info["leaves"]]
    assert 0 < ends.count("error") < len(ends)


def test_a_tree_that_cannot_start_says_why() -> None:
    bad, good = roll(tasks=["maze/1", TASKS[0]])
    assert bad.nodes == []
    assert bad.info["errors"][0]["error"] == "ValueError: unknown task 'maze/1'"
    assert len(good.leaves()) > 1


def test_nothing_but_failures_is_an_error() -> None:
    with pytest.raises(RolloutError, match=r"every trajectory failed.*unknown task 'maze/1'"):
        roll(tasks=["maze/1", "maze/2"])


class NoTwins(Corridor):
    """Only the environment that was reset can be forked."""

    original = False

    def reset(self, task: str, seed: int = 0) -> Any:
        self.original = True
        return super().reset(task, seed)

    def fork(self) -> Corridor:
        if not self.original:
            raise RuntimeError("no second world")
        return super().fork()


def test_a_failed_fork_leaves_the_trajectory_alone() -> None:
    config = replace(CONFIG, rule="random", probability=1.0, pacing="first_come")
    (tree,) = roll(config, tasks=TASKS[:1], source=CorridorSource(NoTwins))
    assert len(tree.leaves()) == CONFIG.roots
    assert tree.info["errors"]
    assert all(leaf["end"] != "error" for leaf in tree.info["leaves"])


def test_cancelling_frees_everything_and_keeps_finished_trees() -> None:
    source = CorridorSource()
    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    kept: list[Tree] = []

    async def interrupted() -> None:
        job: asyncio.Task[Any]

        def on_event(event: Event) -> None:
            if event.tree is not None:
                kept.append(event.tree)
                job.cancel()

        tasks = [*TASKS, *["corridor/40/3"] * 3]
        config = replace(CONFIG, horizon=30)
        run = rollout(
            tasks,
            engine=engine,
            source=source,
            chat=chat(),
            config=config,
            seed=0,
            on_event=on_event,
        )
        job = asyncio.create_task(run)
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(interrupted())
    assert 1 <= len(kept) < 5
    assert not engine.live
    assert all(env.closed for env in source.made)


def test_an_error_of_the_listener_is_raised_as_it_is() -> None:
    def full(event: Event) -> None:
        if event.tree is not None:
            raise OSError("disk full")

    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    with pytest.raises(OSError, match="disk full"):
        roll(engine=engine, on_event=full)
    assert not engine.live
