"""What `score` accepts, as checks that name the field, the value and the remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spark_kernels.score.op import Scores

SMALLEST_TEMPERATURE = 1e-5
MOST_TOKENS = 2**20 - 1


def check(
    logits: Tensor,
    temperature: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    allowed: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    tokens: Tensor | None,
    out: Scores | None,
) -> None:
    """Raise ValueError for the first argument of `score` that does not fit."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits has shape {list(logits.shape)}: pass [B, V] with V > 0")
    if logits.shape[1] > MOST_TOKENS:
        raise ValueError(f"logits has V = {logits.shape[1]}: at most {MOST_TOKENS} are supported")
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits is {logits.dtype}: pass float32, bfloat16 or float16")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"logits has stride {logits.stride(1)} along V: call .contiguous() first")
    rows, vocab = logits.shape
    row = [rows]
    shape(logits, "temperature", temperature, torch.float32, row)
    shape(logits, "top_k", top_k, torch.int32, row)
    shape(logits, "top_p", top_p, torch.float32, row)
    shape(logits, "min_p", min_p, torch.float32, row)
    shape(logits, "allowed", allowed, torch.int32, [rows, -(-vocab // 32)])
    for name, value in (("seed", seed), ("position", position), ("tokens", tokens)):
        shape(logits, name, value, torch.int64, row)
    if out is not None:
        for name, value in out._asdict().items():
            shape(
                logits,
                f"out.{name}",
                value,
                torch.int64 if name == "tokens" else torch.float32,
                row,
            )
    if temperature is not None:
        ok = (temperature == 0) | ((temperature >= SMALLEST_TEMPERATURE) & (temperature < math.inf))
        values(
            "temperature", temperature, ok, f"use 0 for greedy, or at least {SMALLEST_TEMPERATURE}"
        )
    if top_k is not None:
        values("top_k", top_k, top_k >= 0, "use 0 to switch it off")
    if top_p is not None:
        values("top_p", top_p, (top_p > 0) & (top_p <= 1), "use a value in (0, 1], 1 = off")
    if min_p is not None:
        values("min_p", min_p, (min_p >= 0) & (min_p <= 1), "use a value in [0, 1], 0 = off")
    if tokens is not None:
        remedy = f"use -1 to sample, or a token below V = {vocab}"
        values("tokens", tokens, (tokens >= -1) & (tokens < vocab), remedy)


def shape(
    logits: Tensor, name: str, value: Tensor | None, dtype: torch.dtype, wanted: list[int]
) -> None:
    """Raise ValueError unless `value` is absent or a contiguous tensor of this dtype and shape."""
    if value is None:
        return
    if value.dtype != dtype or list(value.shape) != wanted:
        found = f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"{name} is {found}: pass {dtype} {wanted} to match logits")
    if value.device != logits.device:
        raise ValueError(f"{name} is on {value.device}: move it to {logits.device}, as logits")
    if not value.is_contiguous():
        raise ValueError(f"{name} has strides {value.stride()}: call .contiguous() first")


def values(name: str, value: Tensor, ok: Tensor, remedy: str) -> None:
    """Raise ValueError naming the first row of `value` where `ok` is false."""
    if not bool(ok.all()):
        row = int((~ok).nonzero()[0, 0])
        raise ValueError(f"{name}[{row}] = {value[row].item():.6g}: {remedy}")
