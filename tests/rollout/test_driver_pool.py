"""The driver with environments in other processes: the same trees, also when a process dies."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import bigram
from corridor import PlainCorridors
from reference_engine import ReferenceEngine
from rolling import CONFIG, TASKS, chat, check, roll

from spark.core import Tree
from spark.envs.pool import PooledSource
from spark.rollout import Event, rollout

CONFIG = replace(CONFIG, pacing="first_come")


def pooled(kill_after: int | None = None) -> tuple[list[Tree], list[int]]:
    """Return trees grown on a pool, and the processes it used."""
    pids: list[int] = []
    turns = 0

    with PooledSource(PlainCorridors(), workers=2, step_seconds=30.0) as source:

        def on_event(event: Event) -> None:
            nonlocal turns
            turns += event.kind == "turn"
            if turns == kill_after and source.pids():
                pids.append(source.pids()[0])
                os.kill(pids[0], signal.SIGKILL)
                turns += 1

        job = rollout(
            TASKS,
            engine=ReferenceEngine(bigram.next_logits, bigram.tokenizer()),
            source=source,
            chat=chat(),
            config=CONFIG,
            seed=0,
            on_event=on_event,
        )
        trees = asyncio.run(job)
        pids += source.pids()
    return trees, pids


def test_trees_are_those_of_environments_in_this_process() -> None:
    expected = roll(CONFIG)
    for kill_after in (None, 2, 12):
        trees, pids = pooled(kill_after)
        assert [tree.nodes for tree in trees] == [tree.nodes for tree in expected]
        assert sum(tree.info["forks"] for tree in trees) > 0
        for tree in trees:
            check(tree, CONFIG)
        assert len(set(pids)) == 2 + (kill_after is not None)
