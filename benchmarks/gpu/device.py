"""What the device can do at best, and how runs on it are timed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Clock, Run, Timing, event_time, interleave, timed

Measurement = Callable[[], list[Case]]

# buffers of one run together exceed any L2 cache there is
COLD_BYTES = 256 << 20


def clock(device: torch.device) -> Clock:
    """Return how runs on `device` are timed: CUDA events, or the wall clock of a CPU."""
    return event_time if device.type == "cuda" else timed


def copies_to_stay_cold(nbytes: int, quick: bool) -> int:
    """Return how many inputs of `nbytes` must take turns so that none is still in the L2 cache."""
    return 2 if quick else max(2, -(-COLD_BYTES // max(nbytes, 1)))


def rotate(call: Callable[..., object], inputs: Sequence[Any]) -> Run:
    """Return a run that calls `call(input)` with the next input each time."""
    turn = itertools.cycle(inputs)
    return lambda: call(next(turn))


def graphed(call: Callable[..., object], inputs: Sequence[Any], device: torch.device) -> Run:
    """Return a run of `call` on all inputs as one captured graph: no launch is paid by the host.

    Its time is that of `len(inputs)` calls. On a CPU it is a plain loop.
    """

    def loop() -> None:
        for one in inputs:
            call(one)

    if device.type != "cuda":
        return loop
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loop()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()
    return graph.replay


@functools.cache
def copy_rate(device: torch.device, quick: bool) -> Timing:
    """Return bytes a second of a large copy, reads and writes counted."""
    half = (1 << 20) if quick else (1 << 30)
    source = torch.ones(half, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs = {"copy": lambda: target.copy_(source)}
    return interleave(runs, rounds=9, clock=clock(device))["copy"].rate(2 * half)


def floor(nbytes: float, device: torch.device, quick: bool) -> float:
    """Return the seconds that moving `nbytes` takes at the measured copy rate."""
    return nbytes / copy_rate(device, quick).median


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return the measurement of the device's own rates."""
    return [functools.partial(rates, device, quick)]


def rates(device: torch.device, quick: bool) -> list[Case]:
    """Return the copy bandwidth and the rate of bf16 matrix products."""
    n = 128 if quick else 8192
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    runs = {"matmul": lambda: torch.mm(a, b, out=out)}
    product = interleave(runs, rounds=9, clock=clock(device))["matmul"].rate(2 * n**3 / 1e12)
    copy = copy_rate(device, quick).scaled(1e-9)
    case = {"device": device.type}
    return [
        Case(op="copy", case=case, metric="rate", unit="GB/s", ours=copy),
        Case(op="matmul", case=case, metric="rate", unit="TFLOP/s", ours=product),
    ]


def largest_error(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of finite floats."""
    worst = 0.0
    for a, b in zip(ours, wanted, strict=True):
        if a.is_floating_point() and a.numel():
            gap = (a.double() - b.double()).abs()
            worst = max(worst, float(gap[gap.isfinite()].max()))
    return worst


def within(case: Case, goal: float) -> Case:
    """Ask that the time does not exceed `goal`, in the case's unit."""
    case.target = {**(case.target or {}), case.unit: goal}
    case.met = case.met is not False and case.ours.median <= goal
    return case


def in_a_graph(
    op: str,
    shapes: dict[str, Any],
    call: Callable[..., object],
    inputs: Sequence[Any],
    least: float,
    device: torch.device,
    quick: bool,
) -> Case:
    """Time calls captured in one graph, against `least` seconds a call: the device's own time."""
    runs = {"ours": graphed(call, inputs, device)}
    times = interleave(runs, rounds=3 if quick else 15, clock=clock(device))["ours"]
    each = times.scaled(1e3 / len(inputs))
    return Case(
        op=op,
        case={**shapes, "launched": "graph"},
        metric="time",
        unit="ms",
        ours=each,
        floor=1e3 * least,
        fraction_of_floor=1e3 * least / each.median,
    )
