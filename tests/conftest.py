"""Shared by all tests: fixed seeds, and fresh memory that is never accidentally right."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# the same examples each time, and no fault of theirs where a machine stalls
settings.register_profile(
    "spark", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("spark")

if not torch.cuda.is_available():
    # read when a kernel is defined: Triton kernels run on CPU tensors, one program after the other
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return `make` with its memory filled: NaN for floats, an absurd value for integers."""

    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if tensor.device.type == "meta":
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(97)

    return wrapped


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill what torch.empty* returns, so that an output left unwritten fails the test."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    yield
