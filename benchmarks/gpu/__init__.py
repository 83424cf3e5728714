"""The GPU suite: every op against its floor and its baselines on one CUDA device.

`make gpu` runs it; `python -m benchmarks --suite gpu --quick` runs the same code in small, on the
CPU where there is no GPU. Every module here with `measurements(device, quick)`, a list of calls
that return cases each, is part of it. Each module has a process of its own, so that nothing it does
to the device or to the clock reaches another; what fails is a missed target, and what was measured
is kept.
"""

from __future__ import annotations

import pkgutil
import queue
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.gpu.device import Measurement
from benchmarks.harness import Case, Timing
from spark_kernels import _load

ENGINE = ("engine", "rollouts")
"""Measured last: they take longest."""
SECONDS = 120.0
"""What one module may take."""


def run(quick: bool = False) -> list[Case]:
    """Return the device's rates, then the cases of every op."""
    if quick:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return [case for name in modules() for call in calls(name, device, True) for case in call()]
    if not torch.cuda.is_available():
        raise SystemExit("--suite gpu: torch sees no CUDA device; --quick runs it on the CPU")
    if missing := [op for op in ("score", "kv_fork") if not _load.has(op, "cuda")]:
        raise SystemExit(f"--suite gpu: no CUDA kernel of {', '.join(missing)} loads: spark doctor")
    cases: list[Case] = []
    for name in modules():
        for found in apart(name, SECONDS, torch.device("cuda")):
            cases += found
            results.write("gpu", cases, "python -m benchmarks --suite gpu", results.RESULTS)
    return cases


def modules() -> list[str]:
    """Return the modules of the suite in the order they are measured."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return ["device", *sorted(found - {"device", *ENGINE}), *ENGINE]


def calls(name: str, device: torch.device, quick: bool) -> list[Measurement]:
    """Return the measurements of one module."""
    return import_module(f"benchmarks.gpu.{name}").measurements(device, quick)


def apart(
    name: str, seconds: float, device: torch.device, quick: bool = False
) -> Iterator[list[Case]]:
    """Yield what each measurement of a module returns, taken in a process that may take `seconds`.

    A process that dies or takes longer is one failed case more.
    """
    context = get_context("spawn")
    answers: Any = context.Queue()
    process = context.Process(target=measure, args=(name, answers, device, quick), daemon=True)
    process.start()
    end = time.monotonic() + seconds
    while True:
        try:
            answer = answers.get(timeout=0.5)
        except queue.Empty:
            if process.is_alive() and time.monotonic() < end:
                continue
            why = f"stopped after {seconds:.0f} s" if process.is_alive() else "its process died"
            yield [failed(name, why)]
            break
        if answer is None:
            break
        yield answer
    process.kill()
    process.join()


def measure(name: str, answers: Any, device: torch.device, quick: bool) -> None:
    """Put the cases of every measurement of a module into `answers`, then None."""
    for call in calls(name, device, quick):
        try:
            answers.put(call())
        except Exception as error:
            # the time on a device is short: what can be measured is
            traceback.print_exc()
            answers.put([failed(name, f"{type(error).__name__}: {error}"[:300])])
        torch.cuda.empty_cache()
    answers.put(None)


def failed(op: str, why: str) -> Case:
    """Return a missed target that says why there is no number."""
    nothing = Timing(0.0, 0.0, 0.0, 0)
    return Case(op=op, case={"failed": why}, metric="failed", unit="runs", ours=nothing, met=False)
