"""What an environment costs: forks against replays, steps, memory, and how exact its forks are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from spark.envs.base import Determinism, Env, EnvSource, ForkKind
from spark.envs.walk import Step, choose, descend, same_after

DEPTHS = (5, 20, 50)
TAIL = 4
"""Steps of a continuation."""
ROUNDS = 5


@dataclass(kw_only=True, slots=True, frozen=True)
class ForkCost:
    """What it takes to have a second environment in a state `depth` steps from the start."""

    depth: int
    kind: ForkKind
    """How an environment forks at this depth."""
    fork_ms: float
    replay_ms: float
    """A new environment that is reset and takes the steps again."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Report:
    """The figures that `spark env check` prints."""

    determinism: Determinism
    forks: tuple[ForkCost, ...]
    continuations: int
    differences: tuple[str, ...]
    """Continuations whose fork went another way, with the first such step."""
    steps_per_s: float
    """Of a random walk, the admissible commands looked at in every state."""
    reset_ms: float
    memory_mb: float
    """Resident memory that the source and its environments added, processes they start included."""


def measure(
    source: EnvSource,
    *,
    split: str = "train",
    depths: tuple[int, ...] = DEPTHS,
    continuations: int = 20,
    seed: int = 0,
) -> Report:
    """Measure `source` on a few tasks of `split`; times are medians of a few rounds."""
    rng, before = Random(seed), resident_mb()
    tasks = source.tasks(split, 4, seed)
    env = source.make()
    env.reset(tasks[0], seed)
    resets = [timed(lambda: env.reset(tasks[0], seed)) for _ in range(ROUNDS)]
    steps, spent = speed(env, tasks[0], rng)
    forks = tuple(fork_cost(source, env, tasks[0], depth, rng) for depth in depths)
    found = [
        continuation(env, tasks[number % len(tasks)], rng, max(depths))
        for number in range(continuations)
    ]
    report = Report(
        determinism=env.determinism,
        forks=forks,
        continuations=continuations,
        differences=tuple(text for text in found if text is not None),
        steps_per_s=steps / spent,
        reset_ms=1e3 * median(resets),
        # the system may take pages back meanwhile
        memory_mb=max(0.0, resident_mb() - before),
    )
    env.close()
    return report


def speed(env: Env, task: str, rng: Random, least: float = 1.0) -> tuple[int, float]:
    """Return (steps, seconds) of random walks that take at least `least` seconds."""
    steps, spent = 0, 0.0
    while spent < least:
        _, info = env.reset(task, 0)
        for _ in range(50):
            started = time.perf_counter()
            step = Step("", *env.step(choose(info, rng)))
            spent += time.perf_counter() - started
            steps, info = steps + 1, step.info
            if step.over or spent >= least:
                break
    return steps, spent


def fork_cost(source: EnvSource, env: Env, task: str, depth: int, rng: Random) -> ForkCost:
    """Return what a fork costs `depth` steps into `task`, or as deep as a walk gets."""
    reached, fork, replay = two_ways(source, env, task, depth, rng)
    # in turns, so that a slow phase of the machine does not hit one of them only
    pairs = [(timed(fork), timed(replay)) for _ in range(ROUNDS)]
    forks, replays = zip(*pairs, strict=True)
    return ForkCost(
        depth=reached,
        kind=env.fork_kind,
        fork_ms=1e3 * median(forks),
        replay_ms=1e3 * median(replays),
    )


def two_ways(
    source: EnvSource, env: Env, task: str, depth: int, rng: Random
) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Bring `env` up to `depth` random steps into `task`; return the depth it reached and two calls
    that make a second environment there, and close it: the fork, and a reset that takes the steps
    again.
    """
    _, info = env.reset(task, 0)
    trace = descend(env, info, rng, depth)

    def replay() -> None:
        fresh = source.make()
        fresh.reset(task, 0)
        for step in trace:
            fresh.step(step.action)
        fresh.close()

    return len(trace), lambda: env.fork().close(), replay


def continuation(env: Env, task: str, rng: Random, deepest: int) -> str | None:
    """Fork at a random depth, walk on in both and return how they differ, if they do."""
    _, info = env.reset(task, 0)
    trace = descend(env, info, rng, rng.randint(1, deepest))
    twin = env.fork()
    try:
        return same_after(env, twin, trace[-1].info if trace else info, rng, TAIL)
    finally:
        twin.close()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that `call` takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def resident_mb() -> float:
    """Return the resident memory of this process and all its descendants, in MB; Linux only."""
    parents, pages = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            # it has ended in the meantime
            continue
        parents[int(folder.name)] = int(fields[1])
    family = {os.getpid()}
    for pid in sorted(parents):
        if parents[pid] in family:
            family.add(pid)
    return sum(pages[pid] for pid in family if pid in pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
