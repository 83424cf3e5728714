"""Finds and loads the compiled operator libraries, and says what runs and why."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from spark_kernels import spec

LIB = Path(__file__).parent / "lib"
WITHOUT_CPP = {"head_loss"}
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
    if op in WITHOUT_CPP:
        here, why = "torch, in chunks", "this op has no C++ kernel"
    elif has(op, "cpu"):
        here = f"C++ ({ISAS[torch.ops.spark.cpu_isa()]})"
        why = "libspark_ops_cpu.so is loaded"
    else:
        why = library("cpu") or "the built library lacks this op: " + REBUILD
        return {"implementation": "torch reference", "why": why}
    triton = (Path(__file__).parent / op / "triton.py").exists()
    missing = _no_triton() if triton else library("cuda")
    if missing or not (triton or has(op, "cuda")):
        missing = missing or "no CUDA kernel of this op is built"
        return {"implementation": here, "why": f"{why}; no CUDA: {missing}"}
    return {"implementation": f"{'Triton' if triton else 'CUDA'}; {here}", "why": why}


def _no_triton() -> str:
    """Return why Triton kernels cannot run here, or ""."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "" if find_spec("triton") else "triton is not installed"
