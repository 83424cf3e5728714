"""An op as data: tests, benchmarks and docs iterate over these instead of repeating shapes."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Argument:
    """One tensor of an op: its axes by name, and its dtype ("float" = the case's own dtype).

    Example:
        Argument(("B", "V"), "float", "one row of logits per sequence")
    """

    axes: tuple[str, ...]
    dtype: str
    about: str
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Everything the tools need to know about one op.

    name: the stem of its folder, its test and its benchmark.
    axes: axis name -> meaning. inputs, outputs: argument name -> `Argument`.
    call: the op as `call(**inputs) -> tuple of tensors`; it may work in place and return them.
    reference: the same in plain torch, in fp64 where precision matters.
    init: (sizes, dtype, generator) -> the inputs of `call` and of `reference`, freshly made.
    cases: sizes worth testing; the last one is also what a smoke benchmark runs.
    tolerance: dtype of the inputs -> largest allowed absolute error, plus the same relative error.
    bytes: (sizes, bytes per element) -> least memory traffic. flops: sizes -> arithmetic.
    """

    name: str
    summary: str
    axes: Mapping[str, str]
    inputs: Mapping[str, Argument]
    outputs: Mapping[str, Argument]
    call: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    init: Callable[[Sizes, torch.dtype, torch.Generator], dict[str, Any]]
    cases: tuple[Sizes, ...]
    tolerance: Mapping[torch.dtype, float]
    bytes: Callable[[Sizes, int], int]
    flops: Callable[[Sizes], int]


def names() -> list[str]:
    """Return the ops there are: the folders of this package that hold a spec."""
    root = Path(__file__).parent
    packages = (m.name for m in pkgutil.iter_modules([str(root)]) if m.ispkg)
    return sorted(name for name in packages if (root / name / "spec.py").exists())


def load(name: str) -> OpSpec:
    """Return the spec of op `name`."""
    return import_module(f"spark_kernels.{name}.spec").SPEC
