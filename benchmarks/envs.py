"""A second environment in the same state: the fork against a reset that takes the steps again.

An environment's row is timed only after its rules were checked and random forks went on as their
originals did. What memory and steps cost stands in rows of their own.
"""

from __future__ import annotations

from random import Random

from benchmarks.harness import Case, Timing, interleave
from spark.envs import ENVS
from spark.envs.base import EnvSource
from spark.envs.conformance import conform
from spark.envs.measure import DEPTHS, continuation, resident_mb, speed, two_ways
from spark.envs.walk import walk

NAMES = ("alfworld", "gymnasium", "scienceworld", "textworld", "webshop")
CONTINUATIONS = 20
WALKS, WALK_STEPS = 30, 15


def run(quick: bool = False) -> list[Case]:
    """Return for each environment a row per depth, and one each of exactness, speed and memory; and
    what ScienceWorld's texts owe to the fixed order of objects.
    """
    if quick:
        return [case for name in ("gymnasium", "webshop") for case in cases(name, quick)]
    return [case for name in NAMES for case in cases(name, quick)] + [order_of_objects()]


def cases(name: str, quick: bool) -> list[Case]:
    """Check and measure one environment with its default options."""
    before = resident_mb()
    source = ENVS[name]()
    try:
        conform(source)
        alike = exactness(name, source, quick)
        forks = [fork_case(name, source, depth, 3 if quick else 9) for depth in DEPTHS]
        return [*forks, alike, *other_cases(name, source, before)]
    finally:
        if hasattr(source, "close"):
            source.close()


def fork_case(name: str, source: EnvSource, depth: int, rounds: int) -> Case:
    """Time a fork `depth` steps from the start against a replay to the same state."""
    env, task = source.make(), source.tasks("train", 1)[0]
    reached, fork, replay = two_ways(source, env, task, depth, Random(0))
    assert reached == depth, f"{name}: every walk ends before {depth} steps"
    times = interleave({"fork": fork, "replay": replay}, rounds=rounds)
    kind = env.fork_kind
    env.close()
    ours, other = times["fork"], times["replay"]
    return Case(
        op="fork",
        case={"env": name, "depth": depth, "kind": kind},
        metric="time",
        unit="ms",
        ours=ours.scaled(1e3),
        baselines={"replay": other.scaled(1e3)},
        ratio={"replay": other.median / ours.median},
    )


def exactness(name: str, source: EnvSource, quick: bool) -> Case:
    """Count the random forks that go on as their original does, in all that they promise."""
    env, rng = source.make(), Random(1)
    count = 3 if quick else CONTINUATIONS
    tasks = source.tasks("train", 4, 1)
    found = [continuation(env, tasks[k % 4], rng, max(DEPTHS)) for k in range(count)]
    promised = env.determinism
    env.close()
    same = sum(text is None for text in found)
    assert promised != "exact" or same == count, f"{name}: {next(filter(None, found))}"
    return Case(
        op="forks that go on alike",
        case={"env": name, "promise": promised, "of": count},
        metric="exactness",
        unit="forks",
        ours=Timing(same, same, same, count),
    )


def other_cases(name: str, source: EnvSource, before: float) -> list[Case]:
    """Return steps per second of random walks and the memory of 8 live environments."""
    envs = [source.make() for _ in range(8)]
    for env, task in zip(envs, source.tasks("train", 8, 2), strict=True):
        env.reset(task, 0)
    # counted in pages: less cannot be told from nothing
    memory = max(resident_mb() - before, 0.1)
    steps, spent = speed(envs[0], source.tasks("train", 1)[0], Random(2))
    for env in envs:
        env.close()
    rate = steps / spent
    return [
        Case(
            op=op,
            case={"env": name},
            metric=op,
            unit=unit,
            ours=Timing(value, value, value, 1),
        )
        for op, unit, value in (("steps", "1/s", rate), ("memory of 8", "MB", memory))
    ]


def order_of_objects() -> Case:
    """Count walks that ScienceWorld repeats exactly, with one identity hash for all objects and
    with random ones, as Java has them.
    """
    from spark.envs.scienceworld import jvm

    fixed, counts = jvm.FIXED_ORDER, {}
    for way, options in (("fixed", fixed), ("random", ())):
        jvm.FIXED_ORDER = options
        counts[way] = letter_by_letter()
    jvm.FIXED_ORDER = fixed
    rows = {way: Timing(count, count, count, WALKS) for way, count in counts.items()}
    return Case(
        op="walks repeated letter by letter",
        case={"env": "scienceworld", "of": WALKS, "steps": WALK_STEPS, "task types": "all"},
        metric="exactness",
        unit="walks",
        ours=rows["fixed"],
        baselines={"random hashes": rows["random"]},
        ratio={"random hashes": counts["fixed"] / max(counts["random"], 1)},
    )


def letter_by_letter() -> int:
    """Return how many walks over all task types a second simulator repeats exactly."""
    from spark.envs.scienceworld import ScienceWorldOptions
    from spark.envs.scienceworld.source import ScienceWorldSource

    same = 0
    with ScienceWorldSource(ScienceWorldOptions(spares=0)) as source:
        kinds = source.kinds()
        for number in range(WALKS):
            task, env, twin = f"{kinds[number % len(kinds)]}/0@easy", source.make(), source.make()
            first, info = env.reset(task)
            again, _ = twin.reset(task)
            trace = walk(env, info, Random(number), WALK_STEPS)
            texts = [first, *(step.observation for step in trace)]
            same += texts == [again, *(twin.step(step.action)[0] for step in trace)]
            env.close()
            twin.close()
    return same
