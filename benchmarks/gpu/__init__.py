"""The GPU suite: every op against its floor and its baselines on one CUDA device.

`make gpu` runs it; `python -m benchmarks --suite gpu --quick` runs the same code in small, on the
CPU where there is no GPU. Every module here with `run(device, quick) -> list[Case]` is part of it;
one that fails is a missed target, and what was measured until then is kept.
"""

from __future__ import annotations

import pkgutil
import traceback
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.gpu import device as measured
from benchmarks.harness import Case, Timing

ENGINE = ("engine", "rollouts")
"""Measured last: they take longest."""


def run(quick: bool = False) -> list[Case]:
    """Return the device's rates, then the cases of every op."""
    if not (quick or torch.cuda.is_available()):
        raise SystemExit("--suite gpu: torch sees no CUDA device; --quick runs it on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = measured.rates(device, quick)
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    for module in [*sorted(found - {"device", *ENGINE}), *ENGINE]:
        try:
            cases += import_module(f"benchmarks.gpu.{module}").run(device, quick)
        except Exception as error:
            if quick:
                raise
            # the time on a device is short: what can be measured is
            traceback.print_exc()
            said = {"failed": f"{type(error).__name__}: {error}"[:300]}
            nothing = Timing(0.0, 0.0, 0.0, 0)
            failed = Case(op=module, case=said, metric="failed", unit="runs", ours=nothing)
            failed.met = False
            cases.append(failed)
        if not quick:
            results.write("gpu", cases, "python -m benchmarks --suite gpu", results.RESULTS)
    return cases
