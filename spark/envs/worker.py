"""One process that runs environments for a pool, and the pool's end of the line to it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import ensure_running
from typing import Any

from spark.envs.base import Env, EnvError, EnvSource, EnvTimeout, RestoreError
from spark.envs.guard import Guard
from spark.envs.replay import Record

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
CONTEXT = multiprocessing.get_context("spawn")


class WorkerGone(Exception):
    """The worker had ended before the request was made; nothing was done."""


class WorkerLost(Exception):
    """The worker ended during the request."""


class Worker:
    """A process started with the first request; requests are answered one at a time."""

    def __init__(self, source: EnvSource) -> None:
        self.live = 0
        """Trajectories that live here."""
        self.gone = False
        self._source = source
        self._lock = threading.Lock()
        self._closed: list[int] = []
        self._line: Connection | None = None
        self._process: Any = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the first request."""
        return None if self._process is None else self._process.pid

    def call(self, verb: str, handle: int, *arguments: Any, seconds: float | None) -> Any:
        """Return the answer to a request. Raises what the environment raised, `EnvTimeout` after
        `seconds` (and ends the process), `WorkerGone` or `WorkerLost` when there is no process.
        """
        with self._lock:
            if self.gone:
                raise WorkerGone
            line = self._line or self._start()
            closed = [self._closed.pop() for _ in range(len(self._closed))]
            try:
                line.send((closed, verb, handle, arguments))
                if not line.poll(seconds):
                    self.kill()
                    raise EnvTimeout(f"{verb} took over {seconds} s; its process was ended")
                kind, answer = pickle.loads(line.recv_bytes())
            except (EOFError, OSError) as error:
                self.kill()
                raise WorkerLost from error
        if kind is not None:
            raise kind(answer)
        return answer

    def forget(self, handle: int) -> None:
        """Close an environment with the next request."""
        self._closed.append(handle)

    def kill(self) -> None:
        """End the process, whatever it is doing; two threads may do so at once."""
        self.gone = True
        if self._process is not None:
            self._process.kill()
            self._process.join()
        # closed with the last reference: a request may still read from it
        self._line = None

    def _start(self) -> Connection:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(theirs, self._source), daemon=True)
        # the first process of a program starts this as well, which lifts what we block
        ensure_running()
        # an interrupt from the keyboard goes to every process: ours ends this one
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # raises where the source does not pickle
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._line, self._process = ours, process
        if self.gone:
            # the pool was closed in the meantime
            self.kill()
            raise WorkerGone
        if not ours.poll(START_SECONDS):
            self.kill()
            raise EnvError(f"a worker process did not start within {START_SECONDS} s")
        try:
            ours.recv()
        except (EOFError, OSError) as error:
            self.kill()
            raise WorkerLost from error
        return ours


def _serve(line: Connection, source: EnvSource) -> None:
    """Answer requests until the other end closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    line.send("ready")
    hosted = _Hosted(source)
    while True:
        try:
            closed, verb, handle, arguments = line.recv()
        except EOFError:
            return
        for old in closed:
            hosted.close(old)
        line.send_bytes(_answer(verb, getattr(hosted, verb), handle, arguments))


def _answer(
    verb: str, method: Callable[..., Any], handle: int, arguments: tuple[Any, ...]
) -> bytes:
    """Return pickled (None, result) or (exception class, message): no other exception travels."""
    try:
        result = method(handle, *arguments)
    except (EnvError, RestoreError, ValueError) as error:
        known = (EnvTimeout, EnvError, RestoreError, ValueError)
        return pickle.dumps((next(k for k in known if isinstance(error, k)), str(error)))
    except Exception as error:
        return pickle.dumps((EnvError, f"{type(error).__name__}: {error}"))
    try:
        return pickle.dumps((None, result))
    except Exception as error:
        # pickle raises whatever the object does
        said = f"the answer to {verb} does not pickle: {error}"
        return pickle.dumps((EnvError, said))


class _Hosted:
    """The environments of a worker, by handle."""

    def __init__(self, source: EnvSource) -> None:
        self._source = source
        self._envs: dict[int, Env] = {}

    def reset(self, handle: int, task: str, seed: int) -> tuple[Any, ...]:
        env = self._env(handle)
        return *env.reset(task, seed), env.fork_kind, env.determinism

    def step(self, handle: int, action: str) -> Any:
        return self._envs[handle].step(action)

    def replay(self, handle: int, record: Record) -> Any:
        return record.replay(self._env(handle))

    def fork(self, handle: int, child: int) -> None:
        self._envs[child] = self._envs[handle].fork()

    def close(self, handle: int) -> None:
        if env := self._envs.pop(handle, None):
            try:
                env.close()
            except Exception:
                # of one that nobody has any more: the others here go on
                logger.exception("an environment could not be closed")

    def _env(self, handle: int) -> Env:
        if handle not in self._envs:
            self._envs[handle] = Guard(self._source.make())
        return self._envs[handle]


def _end_with_parent() -> None:
    """End this process with the pool's, even from within an environment that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
