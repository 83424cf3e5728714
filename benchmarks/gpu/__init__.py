"""The GPU suite: every op against its floor and its baselines on one CUDA device.

`make gpu` runs it; `python -m benchmarks --suite gpu --quick` runs the same code in small, on the
CPU where there is no GPU. Every module here with `run(device, quick) -> list[Case]` is part of it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu import device as measured
from benchmarks.harness import Case


def run(quick: bool = False) -> list[Case]:
    """Return the device's rates, then the cases of every op."""
    if not (quick or torch.cuda.is_available()):
        raise SystemExit("--suite gpu: torch sees no CUDA device; --quick runs it on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = measured.rates(device, quick)
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module != "device":
            cases += import_module(f"benchmarks.gpu.{module}").run(device, quick)
    return cases
