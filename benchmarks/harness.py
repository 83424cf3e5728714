"""Fair timing: variants take turns in one run, a wrong result is never timed, medians are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Run = Callable[[], object]
Clock = Callable[[Run, int], float]


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant over `n` rounds."""

    median: float
    min: float
    max: float
    n: int

    def scaled(self, factor: float) -> Timing:
        """Return the same in another unit."""
        return Timing(self.median * factor, self.min * factor, self.max * factor, self.n)

    def rate(self, amount: float) -> Timing:
        """Return `amount` per second; the smallest rate comes from the largest time."""
        return Timing(amount / self.median, amount / self.max, amount / self.min, self.n)


@dataclass(kw_only=True)
class Case:
    """One row of a suite's results.

    ratio: baseline -> ours against it, above 1 = ours is better. floor: the least the machine
    allows, in `unit`. target: the value asked for, judged by `met`. error: largest absolute one
    against fp64 of the same inputs.

    Example:
        Case(op="score", case={"B": 64, "V": 151936, "dtype": "float32"}, metric="time", unit="ms",
             ours=Timing(2.1, 2.0, 2.4, 15), baselines={"torch": Timing(60.0, 58.0, 66.0, 15)},
             ratio={"torch": 28.6}, target={"ratio": {"torch": 15}}, met=True)
    """

    op: str
    case: dict[str, Any]
    metric: str
    unit: str
    ours: Timing
    baselines: dict[str, Timing] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    floor: float | None = None
    fraction_of_floor: float | None = None
    target: dict[str, Any] | None = None
    met: bool | None = None
    error: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the case as plain data, as the results file holds it."""
        return asdict(self)


def interleave(
    variants: Mapping[str, Run],
    *,
    rounds: int = 15,
    warmup: int = 2,
    least: float = 2e-3,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time the variants in turns and return seconds per call.

    Fast calls are repeated until one measurement takes `least` seconds, so that the clock's own
    cost does not show. Turns keep a slow phase of the machine from hitting one variant only.
    """
    clock = clock or timed
    repeats = {}
    for name, run in variants.items():
        for _ in range(warmup):
            run()
        repeats[name] = max(1, round(least / max(clock(run, 1), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            seconds[name].append(clock(run, repeats[name]))
    return {
        name: Timing(statistics.median(times), min(times), max(times), rounds)
        for name, times in seconds.items()
    }


def timed(run: Run, repeats: int) -> float:
    """Return seconds per call of `run`, the device's work included."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def event_time(run: Run, repeats: int) -> float:
    """Return seconds per call of `run` on the GPU, between two events of the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def compare(
    *,
    op: str,
    case: dict[str, Any],
    ours: Run,
    baselines: Mapping[str, Run],
    correct: Callable[[], bool],
    floor: Callable[[], float] | float | None = None,
    targets: Mapping[str, float] | None = None,
    rounds: int = 15,
    clock: Clock | None = None,
) -> Case:
    """Check, then time `ours` against `baselines`; milliseconds.

    floor: the least possible time in seconds, or a run whose own time is that floor (it takes its
    turn with the others). targets: baseline -> ratio asked for; "floor" -> fraction of it.
    """
    assert correct(), f"{op} {case}: the result is wrong, so it is not timed"
    variants: dict[str, Run] = {"ours": ours, **baselines}
    if callable(floor):
        variants["floor"] = floor
    times = interleave(variants, rounds=rounds, clock=clock)
    mine = times.pop("ours")
    least = times.pop("floor").median if callable(floor) else floor
    ratio = {name: other.median / mine.median for name, other in times.items()}
    reached = dict(ratio) if least is None else {**ratio, "floor": least / mine.median}
    return Case(
        op=op,
        case=case,
        metric="time",
        unit="ms",
        ours=mine.scaled(1e3),
        baselines={name: other.scaled(1e3) for name, other in times.items()},
        ratio=ratio,
        floor=None if least is None else least * 1e3,
        fraction_of_floor=reached.get("floor"),
        target=dict(targets) if targets else None,
        met=all(reached[name] >= least for name, least in targets.items()) if targets else None,
    )


def copy_seconds(nbytes: int) -> float:
    """Return how long the machine takes to move `nbytes`: a copy reads half and writes half."""
    source = torch.ones(max(nbytes // 8, 1))
    target = torch.empty_like(source)
    return interleave({"copy": lambda: target.copy_(source)}, rounds=9)["copy"].median
