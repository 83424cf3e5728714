"""Nothing is left open in a pool's process, whatever is closed or fails meanwhile."""

import asyncio
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest
from toy_envs import CorridorSource, Counted, Forgetful, Gated, SourceOf, Stuck

from spark.envs.aside import aside
from spark.envs.base import EnvError, RestoreError
from spark.envs.pool import PooledSource


@pytest.fixture
def pool():
    with PooledSource(CorridorSource(), workers=2, step_seconds=5.0) as source:
        yield source


def test_a_fork_that_fails_leaves_nothing_behind():
    with PooledSource(SourceOf(Forgetful), workers=1) as source:
        env = source.make()
        env.reset("corridor")
        env.step("right")
        (worker,) = source._workers
        for _ in range(3):
            with pytest.raises(RestoreError):
                env.fork()
        assert worker.live == 1
        env.close()
        assert worker.live == 0


def test_a_fork_that_nobody_waits_for_is_closed(pool):
    async def impatient():
        env = pool.make()
        await env.reset_async("corridor")
        for _ in range(3):
            fork = asyncio.create_task(env.fork_async())
            await asyncio.sleep(0)
            fork.cancel()
            await asyncio.gather(fork, return_exceptions=True)
        for _ in range(3000):
            await asyncio.sleep(0.02)
            if sum(worker.live for worker in pool._workers) == 1:
                break
        assert sum(worker.live for worker in pool._workers) == 1
        env.close()

    asyncio.run(impatient())


def test_a_fork_that_comes_as_its_caller_leaves_is_closed():
    child, came = object(), []

    async def leave():
        before = set(threading.enumerate())
        waiting = asyncio.create_task(aside(lambda: child, unwanted=came.append))
        await asyncio.sleep(0)
        for thread in set(threading.enumerate()) - before:
            thread.join()
        # the answer is the loop's next work, and this the one behind it
        asyncio.get_running_loop().call_soon(waiting.cancel)
        await asyncio.gather(waiting, return_exceptions=True)
        return waiting.cancelled()

    assert asyncio.run(leave())
    assert came == [child]


def test_one_that_cannot_be_closed_costs_nobody_else_anything():
    with PooledSource(SourceOf(Stuck), workers=1) as source:
        env, other = source.make(), source.make()
        env.reset("corridor")
        other.reset("corridor")
        (pid,) = source.pids()
        env.close()
        for _ in range(2):
            other.step("right")
        assert source.pids() == [pid]


@pytest.mark.parametrize("wanted", ["reset", "restore"])
def test_an_environment_closed_while_its_request_waits_is_not_left_open(wanted):
    async def main(source):
        busy, late = source.make(), source.make()
        await busy.reset_async("corridor")
        arguments = ["corridor"] if wanted == "reset" else [busy.snapshot()]
        (worker,) = source._workers
        # as if another trajectory's request were being answered
        worker._lock.acquire()
        asking = asyncio.create_task(getattr(late, f"{wanted}_async")(*arguments))
        while late._worker is not worker:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        threads = set(threading.enumerate())
        late.close()
        worker._lock.release()
        while any(each.is_alive() for each in threads if "run" in each.name):
            await asyncio.sleep(0.01)
        return [(await busy.step_async("wait"))[0] for _ in range(2)], worker.live

    with PooledSource(SourceOf(Counted), workers=1) as source:
        texts, live = asyncio.run(main(source))
    # what is closed is closed with the request after it
    assert texts[1] == "1 open"
    assert live == 1


def test_a_pool_closed_under_a_request_closes_its_line_once(monkeypatch):
    close, came = Connection._close, []

    def slowly(line):
        time.sleep(0.2)
        close(line)

    def hang(env):
        try:
            env.step("hang")
        except EnvError as error:
            came.append(error)

    with PooledSource(CorridorSource(), workers=1) as source:
        env = source.make()
        env.reset("corridor")
        asking = threading.Thread(target=hang, args=(env,), daemon=True)
        asking.start()
        monkeypatch.setattr(Connection, "_close", slowly)
    asking.join()
    assert "closed" in str(came[0])


def closed_at(gate, env, request):
    """Make `request` of `env`, close `env` while that waits at the gate, and return what came."""
    came = []

    def ask():
        try:
            came.append(request())
        except EnvError as error:
            came.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    with gate.open("w"):
        env.close()
    asking.join()
    return came[0]


def still_open(source):
    """Return how many environments the process of `source` has, and how many it should have."""
    env = source.make()
    env.reset("corridor")
    # what is closed is closed with the request after it
    texts = [env.step("wait")[0] for _ in range(2)]
    env.close()
    return texts[1], sum(worker.live for worker in source._workers)


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def test_a_fork_whose_original_is_closed_meanwhile_lives_until_it_is_closed(gate):
    with PooledSource(SourceOf(Gated), workers=1) as source:
        env = source.make()
        env.reset(f"corridor{gate}")
        child = closed_at(gate, env, env.fork)
        assert child.step("right")[0] == "1 open"
        child.close()
        assert still_open(source) == ("1 open", 0)


def test_an_environment_closed_while_it_is_rebuilt_is_not_left_open(gate):
    with PooledSource(SourceOf(Gated), workers=1) as source:
        env = source.make()
        env.reset(f"corridor{gate}")
        threading.Thread(target=gate.write_text, args=("",), daemon=True).start()
        env.step("gate")
        os.kill(source.pids()[0], signal.SIGKILL)
        error = closed_at(gate, env, lambda: env.step("right"))
        assert "the environment was closed" in str(error)
        assert still_open(source) == ("1 open", 0)
        with pytest.raises(EnvError, match="was closed"):
            env.reset("corridor")


def test_a_rebuild_that_fails_leaves_nothing_behind():
    with PooledSource(SourceOf(Counted), workers=1) as source:
        env = source.make()
        env.reset("corridor")
        env.step("drift")
        forged = env.snapshot()
        env._record = forged.then(forged.steps[0]._replace(observation="another"))
        os.kill(source.pids()[0], signal.SIGKILL)
        with pytest.raises(RestoreError):
            env.step("right")
        assert still_open(source) == ("1 open", 0)
