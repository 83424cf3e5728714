"""All trees of a server: who may start, what is kept for continuation, and for how long."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from spark.engines.base import EngineError
from spark.engines.text import TokenBytes
from spark.serve.backend import Backend
from spark.serve.limits import Limits
from spark.serve.metrics import Metrics
from spark.serve.nodes import ServedTree
from spark.serve.plan import Request, make_plan
from spark.serve.protocol import Branching, RequestError
from spark.serve.tree import TreeRun

logger = logging.getLogger(__name__)

FULL_RETRY_S = 1
"""Seconds after which a refused client should try again."""


class Trees:
    """Admits requests, keeps their trees, forgets the idle ones."""

    def __init__(self, backend: Backend, limits: Limits, metrics: Metrics) -> None:
        self.backend, self.limits, self.metrics = backend, limits, metrics
        self.text = TokenBytes(backend.tokenizer)
        added = backend.tokenizer.added_tokens_decoder
        self.special = frozenset(token for token, what in added.items() if what.special)
        """Tokens that OpenAI clients do not see as text."""
        self._trees: dict[str, ServedTree] = {}
        self._runs: dict[TreeRun, ServedTree] = {}
        self._reserved = 0

    @asynccontextmanager
    async def run(self, request: Request) -> AsyncGenerator[tuple[ServedTree, TreeRun], None]:
        """Admit `request`; on a proper exit the tree has its nodes, else the leaves are dropped.

        Raises RequestError, with status 429 where the server is full.
        """
        self._admit(request.n)
        tree = self._tree(request.branching)
        name = f"{tree.id}/{next(tree.requests)}"
        plan = make_plan(tree, name, request, self.backend)
        run = TreeRun(name, plan, self.backend, self.text, self.metrics)
        self._trees[tree.id] = tree
        self._runs[run] = tree
        tree.busy += 1
        self._reserve(request.n)
        try:
            await self._make_room()
            yield tree, run
            run.nodes = tree.adopt(leaf.node for leaf in run.leaves)
        finally:
            await in_peace(self._end(run, tree, request))

    async def _end(self, run: TreeRun, tree: ServedTree, request: Request) -> None:
        """Stop what still runs and give back what `run` took."""
        try:
            await run.close()
        finally:
            del self._runs[run]
            tree.busy -= 1
            tree.leaves += [leaf.id for leaf in run.leaves]
            tree.last_used = time.monotonic()
            self._reserve(-request.n)
            wanted = tree.id in self._trees and tree.nodes and request.branching.keep
            if not tree.busy and not wanted:
                await self._drop(tree)

    async def delete(self, tree_id: str) -> None:
        """Drop a tree; requests that grow it fail. Raises RequestError when it is unknown."""
        tree = self.find(tree_id)
        for run in [run for run, grown in self._runs.items() if grown is tree]:
            run.fail(RequestError(f"tree {tree_id} was deleted", status=409))
        if tree.busy:
            # the last of them drops it
            del self._trees[tree_id]
        else:
            await self._drop(tree)

    async def drop_all(self) -> None:
        """Drop every tree, e.g. because new weights make its KV stale.

        Raises RequestError with status 409 while requests are in progress.
        """
        if self._runs:
            raise RequestError(
                f"{len(self._runs)} requests are in progress and hold KV of the old weights: "
                "wait for them",
                status=409,
                retry_s=FULL_RETRY_S,
            )
        for tree in list(self._trees.values()):
            await self._drop(tree)

    async def watch(self) -> None:
        """Drop idle trees and fail what waits for a dead engine, forever, beside the requests."""
        while True:
            await asyncio.sleep(min(1.0, self.limits.idle_seconds / 4))
            if (failure := self.backend.failure) is not None:
                # one that is stopped may forget to tell those who wait for it
                for run in self._runs:
                    run.fail(EngineError(failure))
                # nor does it hold KV that could be released
                continue
            before = time.monotonic() - self.limits.idle_seconds
            for tree in list(self._trees.values()):
                if not tree.busy and tree.last_used <= before:
                    await self._expire(tree)

    async def _expire(self, tree: ServedTree) -> None:
        """Drop `tree`; where that fails, others are still watched."""
        try:
            await self._drop(tree)
        except Exception:
            logger.exception("tree %s could not be dropped", tree.id)

    def _admit(self, n: int) -> None:
        limits = self.limits
        for name in ("max_leaves", "max_running_leaves"):
            if n > (most := getattr(limits, name)):
                raise RequestError(
                    f"n={n} is above this server's limit of {most} leaves ({name})", param="n"
                )
        busy = sum(bool(tree.busy) for tree in self._trees.values())
        if self._reserved + n > limits.max_running_leaves or busy >= limits.max_trees:
            self.metrics.refused("leaves" if busy < limits.max_trees else "trees")
            raise RequestError(
                f"the server is full: {self._reserved} leaves in {busy} trees are in progress; "
                "try again later",
                status=429,
                retry_s=FULL_RETRY_S,
            )

    def _reserve(self, n: int) -> None:
        self._reserved += n
        self.metrics.leaves_reserved.set(self._reserved)
        self.metrics.trees_running.set(sum(bool(tree.busy) for tree in self._trees.values()))

    def _tree(self, branching: Branching) -> ServedTree:
        """Return the tree to continue, or a new one that nobody knows yet."""
        if branching.tree is not None:
            return self.find(branching.tree)
        return ServedTree(id=f"tree-{secrets.token_hex(8)}", policy=branching.policy or "spark")

    def find(self, tree_id: str) -> ServedTree:
        """Return a tree. Raises RequestError, with status 404, when there is none of that id."""
        if tree_id not in self._trees:
            raise RequestError(
                f"branching.tree={tree_id[:80]!r} is unknown or has expired: send the whole prompt "
                "again, without branching.tree",
                param="branching.tree",
                status=404,
            )
        return self._trees[tree_id]

    async def _make_room(self) -> None:
        """Drop the idle trees that were used longest ago, where there are too many trees."""
        while len(self._trees) > self.limits.max_trees:
            idle = [tree for tree in self._trees.values() if not tree.busy]
            if not idle:
                return
            await self._drop(min(idle, key=lambda tree: tree.last_used))
        self.metrics.trees_kept.set(len(self._trees))

    async def _drop(self, tree: ServedTree) -> None:
        self._trees.pop(tree.id, None)
        self.metrics.trees_kept.set(len(self._trees))
        await self.backend.release(tree.leaves)


async def in_peace(work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work` to end even where the caller is cancelled meanwhile; only then give way."""
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
