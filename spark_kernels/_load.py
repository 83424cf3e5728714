"""Finds and loads the compiled operator libraries, and says what runs and why."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from spark_kernels import spec

LIB = Path(__file__).parent / "lib"
ISAS = ("plain", "avx2", "avx512")
REBUILD = "rebuild with `pip install .` (g++ is needed)"


@functools.cache
def library(device: str) -> str:
    """Load the operator library of `device` ("cpu" or "cuda"); return "" or why it is absent."""
    if device == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA"
    path = LIB / f"libspark_ops_{device}.so"
    if not path.exists():
        return f"{path.name} was not built: {REBUILD if device == 'cpu' else 'nvcc was not found'}"
    wanted = os.environ.get("SPARK_ISA", ISAS[-1])
    if wanted not in ISAS:
        raise ValueError(f"SPARK_ISA={wanted!r}: use one of {', '.join(ISAS)}, or unset it")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return ""


@functools.cache
def has(op: str, device: str) -> bool:
    """Return whether `torch.ops.spark.<op>` has a compiled kernel for `device`."""
    if library("cpu") or library(device):
        return False
    name, key = f"spark::{op}", device.upper()
    if not torch._C._dispatch_has_kernel(name):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def active() -> dict[str, dict[str, str]]:
    """Return, for each op, the implementation in use on this machine and the reason.

    Example:
        {"score": {"implementation": "C++ (avx512)", "why": "libspark_ops_cpu.so is loaded"}}
    """
    return {op: _active(op) for op in spec.names()}


def _active(op: str) -> dict[str, str]:
    if not has(op, "cpu"):
        why = library("cpu") or "the built library lacks this op: " + REBUILD
        return {"implementation": "torch reference", "why": why}
    found = f"C++ ({ISAS[torch.ops.spark.cpu_isa()]})"
    if has(op, "cuda"):
        return {"implementation": f"CUDA; {found}", "why": "both operator libraries are loaded"}
    missing = library("cuda") or "no CUDA kernel of this op is built"
    return {"implementation": found, "why": f"libspark_ops_cpu.so is loaded; no CUDA: {missing}"}
