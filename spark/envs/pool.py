"""Environments in processes of their own: slow ones do not hold up the engine, and one that hangs
or crashes costs its own trajectory at most.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import closing
from types import TracebackType
from typing import Any

from spark.envs.aside import aside
from spark.envs.base import Determinism, EnvError, EnvSource, EnvTimeout, ForkKind
from spark.envs.replay import Info, Record, Recorded
from spark.envs.worker import Worker, WorkerGone, WorkerLost


class PooledSource:
    """A source whose environments run in up to `workers` processes, started as they are needed.

    A trajectory whose process is killed is rebuilt elsewhere by repeating its recorded actions,
    and what they give is checked. Use it as a context manager, or `close` it.

    Example:
        with PooledSource(AlfworldSource(), workers=4, step_seconds=10.0) as source:
            env = source.make()
            text, info = await env.reset_async(source.tasks("train", 1)[0])
    """

    def __init__(
        self, source: EnvSource, *, workers: int | None = None, step_seconds: float | None = 60.0
    ) -> None:
        """`workers`: processes at most (None = one per core); `step_seconds`: time limit of one
        reset, step or fork (None = none). `source` is sent to the processes and must pickle.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} leaves nothing to run environments; use 1 or more")
        self.source = source
        self.step_seconds = step_seconds
        self.limit = workers or os.cpu_count() or 1
        self.handles = itertools.count()
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._open = True
        self._finalizer = weakref.finalize(self, _shut_down, self._workers)

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return the source's tasks."""
        return self.source.tasks(split, count, seed)

    @property
    def capacity(self) -> int | None:
        """Environments that may live at once; None = any number. Forks by replay go where there
        is room, others stay with their original, whose process has room for the source's number.
        """
        inner: int | None = getattr(self.source, "capacity", None)
        if inner is None:
            return None
        with closing(self.source.make()) as env:
            return inner * self.limit if env.fork_kind == "replay" else inner

    def prepare(self, tasks: Sequence[str]) -> None:
        """Make what the source keeps on disk for `tasks`, where it keeps anything."""
        if (prepare := getattr(self.source, "prepare", None)) is not None:
            prepare(tasks)

    def make(self) -> PooledEnv:
        """Return a fresh environment; it gets a process at its first reset."""
        return PooledEnv(self)

    def pids(self) -> list[int]:
        """Return the ids of the running processes."""
        return [w.pid for w in self._workers if w.pid is not None and not w.gone]

    def assign(self, worker: Worker | None = None) -> Worker:
        """Return the process for one more trajectory: the given one, or a new one while all
        others are taken.
        """
        with self._lock:
            if worker is not None:
                worker.live += 1
                return worker
            if not self._open:
                raise EnvError("the pool of environments was closed")
            self._workers[:] = [worker for worker in self._workers if not worker.gone]
            least = min(self._workers, key=lambda worker: worker.live, default=None)
            if least is None or (least.live > 0 and len(self._workers) < self.limit):
                least = Worker(self.source)
                self._workers.append(least)
            least.live += 1
            return least

    def release(self, worker: Worker) -> None:
        """Say that a trajectory has left `worker`."""
        with self._lock:
            worker.live -= 1

    def close(self) -> None:
        """End all processes; calling it twice is allowed."""
        with self._lock:
            self._open = False
        self._finalizer()

    def __enter__(self) -> PooledSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PooledEnv:
    """One trajectory in some process of a pool; its snapshots are records, valid everywhere.

    Every call has an `_async` form that waits in a thread; one call at a time.
    """

    fork_kind: ForkKind = "replay"
    determinism: Determinism = "exact"

    def __init__(self, pool: PooledSource) -> None:
        self._pool = pool
        self._worker: Worker | None = None
        self._closed = False
        self._leaving = threading.Lock()
        self._handle = -1
        self._record: Record | None = None
        self.differences: Sequence[str] = ()

    def reset(self, task: str, seed: int = 0) -> tuple[str, Info]:
        """Start `task`. Raises ValueError for an unknown one, `EnvError` when it fails."""
        self._record = None
        _, (observation, info, self.fork_kind, self.determinism) = self._ask("reset", task, seed)
        self._record = Record(task=task, seed=seed, observation=observation)
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Act. Raises `EnvError`, and `EnvTimeout` when the time limit has passed."""
        record = self.snapshot()
        _, (observation, reward, terminated, truncated, info) = self._ask("step", action)
        self._record = record.then(Recorded(action, observation, reward, terminated, truncated))
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> Record:
        """Return the record so far."""
        if self._record is None:
            raise ValueError("the environment was not reset yet; call reset(task) first")
        return self._record

    def restore(self, snapshot: Record) -> None:
        """Repeat `snapshot`. Raises `RestoreError` when it goes differently."""
        self._record = None
        _, self.differences = self._ask("replay", snapshot)
        self._record = snapshot

    def fork(self) -> PooledEnv:
        """Return a second environment in the same state: in the same process where it forks by
        itself, in any process by replay otherwise.
        """
        record = self.snapshot()
        child = PooledEnv(self._pool)
        child.fork_kind, child.determinism = self.fork_kind, self.determinism
        if self.fork_kind == "replay":
            try:
                child.restore(record)
            except BaseException:
                child.close()
                raise
            return child
        child._handle = next(self._pool.handles)
        # it lives where it was made, even if the original was closed meanwhile
        worker, _ = self._ask("fork", child._handle)
        child._worker, child._record = self._pool.assign(worker), record
        return child

    def close(self) -> None:
        """Free the environment in its process; calling it twice is allowed."""
        self._closed = True
        self._leave()
        self._record = None

    async def reset_async(self, task: str, seed: int = 0) -> tuple[str, Info]:
        """`reset` without holding up the event loop."""
        return await aside(lambda: self.reset(task, seed))

    async def step_async(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """`step` without holding up the event loop."""
        return await aside(lambda: self.step(action))

    async def restore_async(self, snapshot: Record) -> None:
        """`restore` without holding up the event loop."""
        await aside(lambda: self.restore(snapshot))

    async def fork_async(self) -> PooledEnv:
        """`fork` without holding up the event loop."""
        return await aside(self.fork, unwanted=PooledEnv.close)

    def _ask(self, verb: str, *arguments: Any) -> tuple[Worker, Any]:
        """Return the worker that answered, and what; where it is gone, rebuild and ask again."""
        losses = 0
        while True:
            try:
                return self._call(self._find_worker(), verb, *arguments)
            except WorkerGone:
                continue
            except WorkerLost as error:
                losses += 1
                if losses == 2:
                    raise EnvError(f"{self._place(arguments)}: its process ended twice") from error
            except EnvTimeout as error:
                raise EnvTimeout(f"{self._place(arguments)}: {error}") from None

    def _call(self, worker: Worker, verb: str, *arguments: Any) -> tuple[Worker, Any]:
        """Return `worker` and its answer; the request waits until others are answered."""
        handle = self._handle
        try:
            return worker, worker.call(verb, handle, *arguments, seconds=self._seconds(arguments))
        finally:
            if self._worker is not worker:
                # closed while the request waited: what it has made since is nobody's
                worker.forget(handle)

    def _find_worker(self) -> Worker:
        """Return the worker that holds this trajectory, rebuilding it where there is none."""
        worker = self._worker
        if worker is None or worker.gone:
            self._handle = next(self._pool.handles)
            worker = self._worker = self._pool.assign()
            try:
                if self._record is not None:
                    _, again = self._call(worker, "replay", self._record)
                    self.differences = [*self.differences, *again]
                if self._closed:
                    raise EnvError("the environment was closed")
            except BaseException:
                self._leave()
                raise
        return worker

    def _leave(self) -> None:
        """Give up our place in the worker; two threads may be about to."""
        with self._leaving:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.forget(self._handle)
            self._pool.release(worker)

    def _seconds(self, arguments: tuple[Any, ...]) -> float | None:
        """Return the time limit of a request; a replay may take it for each of its steps."""
        limit = self._pool.step_seconds
        if limit is None or not isinstance(arguments[0], Record):
            return limit
        return limit * (1 + len(arguments[0].steps))

    def _place(self, arguments: tuple[Any, ...]) -> str:
        if self._record is None:
            return f"task {arguments[0]!r}, reset"
        step = len(self._record.steps) + 1
        return f"task {self._record.task!r}, step {step} {arguments[0]!r}"


def _shut_down(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
