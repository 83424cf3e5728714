"""The driver: every trajectory advances on its own; the engine batches whatever is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from spark.core import Tree
from spark.engines.base import Engine
from spark.envs.base import EnvSource
from spark.rollout.chat import Chat
from spark.rollout.config import RolloutConfig
from spark.rollout.constraint import ActionTrie
from spark.rollout.run import TreeRun
from spark.seeds import derive_seed


@dataclass(kw_only=True, slots=True, frozen=True)
class Event:
    """Something to show or to save while a rollout runs."""

    kind: Literal["turn", "fork", "leaf", "error", "tree"]
    index: int
    """Place of the task in `tasks`."""
    count: int = 0
    """turn: tokens sampled; fork: children made; leaf, error, tree: 1."""
    tree: Tree | None = None
    """The finished tree, with kind "tree"."""


class RolloutError(RuntimeError):
    """Nothing but failures came out of a rollout; the message has the first."""


async def rollout(
    tasks: Sequence[str],
    *,
    engine: Engine,
    source: EnvSource,
    chat: Chat,
    config: RolloutConfig,
    seed: int,
    on_event: Callable[[Event], None] | None = None,
) -> list[Tree]:
    """Roll out one tree per task, all concurrently, and return them in the order of `tasks`.

    Where the source has room for so many environments only, later trees wait for earlier ones.

    A tree depends on the weights, its task, its place in `tasks` and `seed` only. What fails
    (an environment, a request) ends its own trajectory and is listed in `tree.info["errors"]`.

    Raises RolloutError when nothing but failures came out, and what `on_event` raises at a
    finished tree; what it raises at a turn counts as a failure of that trajectory, at other events
    it is only listed.

    When the call is cancelled everything is released and CancelledError goes on; the trees that
    were finished by then have been handed to `on_event`.
    """
    trie = ActionTrie(chat, config.exclude_commands) if config.constrain else None
    emit = on_event or (lambda event: None)
    room = asyncio.Semaphore(trees_at_once(source, config) or max(1, len(tasks)))

    async def one(index: int, task: str) -> Tree:
        async with room:
            return await grown(index, task)

    async def grown(index: int, task: str) -> Tree:
        run = TreeRun(
            task=task,
            seed=derive_seed("tree", seed, index),
            engine=engine,
            source=source,
            chat=chat,
            config=config,
            trie=trie,
            notify=lambda kind, count: emit(Event(kind=kind, index=index, count=count)),
        )
        tree = await run.grow()
        emit(Event(kind="tree", index=index, count=1, tree=tree))
        return tree

    try:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(one(index, task)) for index, task in enumerate(tasks)]
    except ExceptionGroup as several:
        # trees do not raise: this is `on_event`, e.g. a full disk, and once is enough
        raise several.exceptions[0] from None
    trees = [job.result() for job in jobs]
    _check_some_succeeded(trees)
    return trees


def trees_at_once(source: EnvSource, config: RolloutConfig) -> int | None:
    """Return how many trees the source's environments suffice for; None = any number.

    Raises ValueError where they do not for one.
    """
    capacity = getattr(source, "capacity", None)
    if capacity is None:
        return None
    # while a tree's roots are forked, what they are forked from lives too
    needed = config.leaves + 1
    if capacity < needed:
        raise ValueError(
            f"leaves={config.leaves} needs {needed} environments at once, of which there are "
            f"{capacity}: give the source more, or fewer leaves"
        )
    return int(capacity // needed)


def _check_some_succeeded(trees: list[Tree]) -> None:
    """Raise when every trajectory failed: then it is the set-up that is wrong."""
    errors = [error["error"] for tree in trees for error in tree.info["errors"]]
    ends = [leaf["end"] for tree in trees for leaf in tree.info["leaves"]]
    if errors and all(end == "error" for end in ends):
        raise RolloutError(f"every trajectory failed; the first: {errors[0]}")
