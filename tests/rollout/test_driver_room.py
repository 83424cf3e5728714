"""What a rollout holds at once, and that it lets go of all of it whenever it is stopped."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import bigram
import pytest
from corridor import Corridor, CorridorSource
from reference_engine import ReferenceEngine
from rolling import CONFIG, chat, roll

from spark.rollout import Event, rollout


class Narrow(CorridorSource):
    """Has room for so many corridors at once, and notes how many there were."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.most = capacity, 0

    def make(self) -> Corridor:
        made = super().make()
        self.most = max(self.most, sum(not env.closed for env in self.made))
        return made


@pytest.mark.parametrize("capacity", [7, 8, 20])
def test_trees_wait_where_environments_are_few(capacity: int) -> None:
    tasks = [f"corridor/{4 + k % 3}/{k}" for k in range(9)]
    config = replace(CONFIG, rule="random", probability=0.5)
    free = roll(config, tasks=tasks)
    source = Narrow(capacity)
    alive: Counter[str] = Counter()

    def seen(event: Event) -> None:
        alive["most"] = max(alive["most"], sum(not env.closed for env in source.made))

    narrow = roll(config, tasks=tasks, source=source, on_event=seen)
    assert max(alive["most"], source.most) <= capacity
    for one, other in zip(free, narrow, strict=True):
        assert [node.tokens for node in one.nodes] == [node.tokens for node in other.nodes]


def test_one_tree_must_have_room() -> None:
    with pytest.raises(ValueError, match="leaves=6 needs 7 environments at once, of which there"):
        roll(source=Narrow(6))


class Slow(Corridor):
    """Forks and goes back a while later."""

    async def fork_async(self) -> Corridor:
        await asyncio.sleep(0)
        return self.fork()

    async def restore_async(self, snapshot: Any) -> None:
        await asyncio.sleep(0)
        self.restore(snapshot)


@pytest.mark.parametrize("settings", [{"rule": "random"}, {"rule": "none", "planner": "random"}])
def test_a_rollout_may_be_cancelled_at_any_moment(settings: dict[str, Any]) -> None:
    config = replace(CONFIG, horizon=3, **settings)

    async def stopped(ticks: int) -> bool:
        source = CorridorSource(Slow)
        engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
        run = rollout(
            ["corridor/4/5"], engine=engine, source=source, chat=chat(), config=config, seed=1
        )
        job = asyncio.create_task(run)
        for _ in range(ticks):
            await asyncio.sleep(0)
        finished = job.done()
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        assert not engine.live, f"sequences leaked after {ticks} ticks"
        assert all(env.closed for env in source.made), f"environments leaked after {ticks} ticks"
        return finished

    for ticks in range(400):
        if asyncio.run(stopped(ticks)):
            return
    raise AssertionError("it never ended by itself")


@pytest.mark.parametrize("kind", ["turn", "fork", "leaf"])
def test_a_listener_that_fails_once_harms_one_trajectory_at_most(kind: str) -> None:
    failed: list[str] = []

    def once(event: Event) -> None:
        if event.kind == kind and not failed:
            failed.append(kind)
            raise OSError("the screen is gone")

    config = replace(CONFIG, rule="random", probability=0.5)
    (tree,) = roll(config, tasks=["corridor/4/5"], on_event=once)
    ends = [leaf["end"] for leaf in tree.info["leaves"]]
    assert failed and None not in ends and ends.count("error") <= 1 < len(ends)
    assert [error["error"] for error in tree.info["errors"]] == ["OSError: the screen is gone"]


def test_an_ended_trajectory_is_not_grown_from() -> None:
    """One whose tokens are spent between decisions has a leaf, and keeps it."""
    config = replace(CONFIG, rule="none", planner="random", leaves=2, roots=1)
    config = replace(config, max_generated_tokens=16)
    for seed in range(20):
        (tree,) = roll(config, tasks=["corridor/4/5"], seed=seed)
        for leaf in tree.leaves() if len(tree.nodes) > 1 else []:
            sampled = sum(sum(tree.nodes[at].sampled) for at in tree.path(leaf))
            assert sampled <= 16
            own = [node for node in tree.path(leaf) if len(tree.children()[node]) > 1]
            assert own or sampled <= 8, "a share is 8 tokens"


class Spaced(Corridor):
    """Spells its commands with more spaces than anybody writes."""

    def _info(self) -> dict[str, Any]:
        told = super()._info()
        wide = tuple(command.replace(" ", "  ") for command in told["admissible"])
        return told | {"admissible": wide}

    def step(self, action: str) -> Any:
        assert "  " in action or " " not in action, "it is asked in its own spelling"
        return super().step(action.replace("  ", " "))


def test_commands_differ_by_spaces_only() -> None:
    config = replace(CONFIG, rule="none", constrain=True)
    (tree,) = roll(config, tasks=["corridor/4/5"], source=CorridorSource(Spaced))
    (plain,) = roll(config, tasks=["corridor/4/5"])
    assert tree.info["env_steps"] > 0
    for one, other in zip(tree.nodes, plain.nodes, strict=True):
        assert (one.tokens, one.invalid) == (other.tokens, other.invalid)
