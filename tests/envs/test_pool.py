import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from pickle import PicklingError

import pytest
from toy_envs import Corridor, CorridorSource, Forgetful, Gated, SourceOf, Talkative

from spark.envs.base import EnvError, EnvTimeout, RestoreError
from spark.envs.conformance import conform
from spark.envs.pool import PooledSource


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def ended(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(running, pids))


@pytest.fixture
def pool():
    with PooledSource(CorridorSource(), workers=2, step_seconds=5.0) as source:
        yield source
        pids = source.pids()
    assert ended(pids)


def test_conformance(pool):
    conform(pool)


def test_starts_lazily_and_up_to_the_limit(pool):
    assert pool.pids() == []
    envs = [pool.make() for _ in range(3)]
    assert pool.pids() == []
    counts = []
    for env in envs:
        env.reset("corridor")
        counts.append(len(pool.pids()))
    assert counts == [1, 2, 2]


def test_freed_process_is_used_again(pool):
    first = pool.make()
    first.reset("corridor")
    first.close()
    pool.make().reset("corridor")
    assert len(pool.pids()) == 1


def test_killed_process_is_replaced_and_its_trajectories_rebuilt(pool):
    envs = [pool.make() for _ in range(4)]
    for number, env in enumerate(envs):
        env.reset(f"corridor/{number}")
        env.step("right")
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    for number, env in enumerate(envs):
        assert env.step("right")[0] == "place 2"
        assert env.snapshot().task == f"corridor/{number}"
    assert len(pool.pids()) == 2


def test_rebuild_is_verified(pool):
    env = pool.make()
    env.reset("corridor")
    env.step("right")
    env.step("drift")
    os.kill(pool.pids()[0], signal.SIGKILL)
    with pytest.raises(RestoreError, match=r"step 2 of 2 \(action 'drift'\)"):
        env.step("right")


def test_process_that_dies_of_a_step(pool):
    lost, other = pool.make(), pool.make()
    other.reset("corridor/other")
    other.step("right")
    lost.reset("corridor/lost")
    with pytest.raises(EnvError, match=r"task 'corridor/lost', step 1 .*ended twice"):
        lost.step("die")
    assert other.step("right")[0] == "place 2"


def test_hanging_step_costs_its_own_trajectory_only():
    with PooledSource(CorridorSource(), workers=1, step_seconds=0.5) as pool:
        hanging, other = pool.make(), pool.make()
        for env in (hanging, other):
            env.reset("corridor")
            env.step("right")
        pids = pool.pids()
        started = time.monotonic()
        with pytest.raises(EnvTimeout, match=r"'corridor', step 2 'hang': step took over 0.5 s"):
            hanging.step("hang")
        assert time.monotonic() - started < 5.0
        assert ended(pids)
        assert other.step("right")[0] == "place 2"


@pytest.mark.parametrize(
    ("action", "message"),
    [("crash", "Corridor, task 'corridor', step 1: 'crash' raised KeyError"), ("number", "int 7")],
)
def test_faults_are_named(pool, action, message):
    env = pool.make()
    env.reset("corridor")
    with pytest.raises(EnvError, match=message):
        env.step(action)


def test_slow_environments_do_not_hold_up_the_event_loop(pool):
    async def episode(env):
        await env.reset_async("corridor")
        await env.step_async("nap")
        child = await env.fork_async()
        return (await child.step_async("right"))[0]

    async def ticks(stop):
        count = 0
        while not stop.is_set():
            await asyncio.sleep(0.01)
            count += 1
        return count

    async def main():
        stop = asyncio.Event()
        counting = asyncio.create_task(ticks(stop))
        texts = await asyncio.gather(*(episode(pool.make()) for _ in range(2)))
        stop.set()
        return texts, await counting

    texts, count = asyncio.run(main())
    assert texts == ["place 1", "place 1"]
    assert count > 20


def test_closed_pool_says_so(pool):
    env = pool.make()
    pool.close()
    pool.close()
    with pytest.raises(EnvError, match="closed"):
        env.reset("corridor")


def test_no_process_survives_a_program_that_forgets_to_close():
    program = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from toy_envs import CorridorSource
        from spark.envs.pool import PooledSource
        if __name__ == "__main__":
            pool = PooledSource(CorridorSource(), workers=2)
            envs = [pool.make() for _ in range(2)]
            for env in envs:
                env.reset("corridor")
            print(*pool.pids(), flush=True)
            if sys.argv[2] == "killed":
                os.kill(os.getpid(), 9)
    """
    for way in ("ends", "killed"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(Path(__file__).parent), way],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        pids = [int(pid) for pid in done.stdout.split()]
        assert len(pids) == 2, done.stderr
        assert ended(pids), way


def test_an_interrupt_from_the_keyboard_is_heard_by_the_program_alone():
    program = """
        import os, signal, sys, threading, time
        sys.path.insert(0, sys.argv[1])
        from toy_envs import CorridorSource
        from spark.envs.pool import PooledSource
        if __name__ == "__main__":
            # the threads below end with the pool
            threading.excepthook = lambda _: None
            with PooledSource(CorridorSource(), workers=2) as pool:
                # as it was before anything was started
                assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
                hung, starting = pool.make(), pool.make()
                hung.reset("corridor")
                threading.Thread(target=hung.step, args=("hang",), daemon=True).start()
                threading.Thread(target=starting.reset, args=("corridor",), daemon=True).start()
                while len(pool.pids()) < 2:
                    time.sleep(0.01)
                print(*pool.pids(), flush=True)
                assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
                try:
                    # as a terminal does
                    os.killpg(0, signal.SIGINT)
                    time.sleep(60)
                except KeyboardInterrupt:
                    # a worker that heard it would say so meanwhile
                    time.sleep(0.5)
                    raise
    """
    # background jobs of a shell, as we may be one, do not hear interrupts
    heard = ["env", "--default-signal=INT"]
    done = subprocess.run(
        [*heard, sys.executable, "-c", textwrap.dedent(program), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        start_new_session=True,
    )
    assert ended([int(pid) for pid in done.stdout.split()])
    assert done.stderr.count("Traceback") == done.stderr.count("KeyboardInterrupt") == 1


def test_zero_workers_are_refused():
    with pytest.raises(ValueError, match="workers=0"):
        PooledSource(CorridorSource(), workers=0)


@pytest.mark.parametrize(("kind", "room"), [(Corridor, 12), (Gated, 4)])
def test_forks_that_stay_in_their_process_have_the_room_of_one(kind, room):
    with PooledSource(SourceOf(kind, capacity=4), workers=3) as source:
        assert source.capacity == room
        assert source.pids() == []


def test_a_source_that_does_not_pickle_says_so():
    tied = SourceOf(Forgetful, tied=lambda: 0)
    refused = pytest.raises((AttributeError, PicklingError), match=r"pickle|lambda")
    with PooledSource(tied, workers=1) as source, refused:
        source.make().reset("corridor")


def test_an_answer_that_does_not_pickle_costs_nobody_else_anything():
    with PooledSource(SourceOf(Talkative), workers=1) as source:
        env, other = source.make(), source.make()
        env.reset("corridor")
        other.reset("corridor")
        (pid,) = source.pids()
        with pytest.raises(EnvError, match="the answer to step does not pickle"):
            env.step("right")
        assert source.pids() == [pid]
