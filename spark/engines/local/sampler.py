"""Draws the next token of every row with one call of `score`."""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch

from spark.engines.base import EngineError
from spark.engines.local.device import upload
from spark.engines.local.sequence import Generation, Request
from spark_kernels import score


class Draws(NamedTuple):
    """One entry a row; values in nats. A token of -1 means that the logits were not usable."""

    tokens: list[int]
    logprobs: list[float]
    log_kept_mass: list[float]
    entropies: list[float]


class Sampler:
    """Keeps the rows' parameters in tensors, renewed only when the rows change."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rows: list[Generation | None] = []
        self._params: dict[str, Any] = {}

    @torch.inference_mode()
    def draw(
        self, logits: torch.Tensor, requests: list[Request], allowed: list[list[int] | None]
    ) -> Draws:
        """Sample from `logits` [R, V], row i for `requests[i]` limited to the ids `allowed[i]`."""
        rows = [request.generation for request in requests]
        if rows != self._rows:
            self._rows, self._params = rows, self._tensors(rows)
        positions = [len(request.seq.tokens) for request in requests]
        scores = score(
            logits,
            position=upload(positions, self._device),
            allowed=self._bitmask(allowed),
            **self._params,
        )
        # one copy to the host, so one wait for the device; float64 holds every token id
        columns = (scores.tokens, scores.logprob, scores.log_kept_mass, scores.entropy)
        tokens, *values = torch.stack([column.double() for column in columns]).tolist()
        return Draws([int(token) for token in tokens], *values)

    def _tensors(self, rows: list[Generation | None]) -> dict[str, torch.Tensor | None]:
        params = [row.params for row in rows if row is not None]

        def column(name: str, dtype: torch.dtype, off: float | None) -> torch.Tensor | None:
            values = [getattr(p, name) for p in params]
            if all(value == off for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=self._device)

        return {
            "temperature": column("temperature", torch.float32, 1.0),
            "top_k": column("top_k", torch.int32, 0),
            "top_p": column("top_p", torch.float32, 1.0),
            "min_p": column("min_p", torch.float32, 0.0),
            "seed": column("seed", torch.int64, None),
        }

    def _bitmask(self, allowed: list[list[int] | None]) -> torch.Tensor | None:
        """Return int32 [R, ceil(V / 32)] with the bits of the allowed ids set."""
        if all(ids is None for ids in allowed):
            return None
        words = np.zeros((len(allowed), -(-self._vocab_size // 32)), dtype=np.uint32)
        for row, ids in zip(words, allowed, strict=True):
            if ids is None:
                row.fill(0xFFFFFFFF)
            else:
                bits = np.array(ids)
                np.bitwise_or.at(row, bits >> 5, np.uint32(1) << (bits & 31).astype(np.uint32))
        mask = torch.from_numpy(words.view(np.int32))
        mask = mask.pin_memory() if self._device.type == "cuda" else mask
        return mask.to(self._device, non_blocking=True)


def allowed_ids(generation: Generation, vocab_size: int) -> list[int] | None:
    """Ask the row's constraint what may come next; None = anything."""
    constraint = generation.params.constraint
    if constraint is None:
        return None
    ids = constraint.allowed(generation.sample.tokens)
    if ids is None:
        return None
    # each counts once, here and in the log-probabilities that are trained
    ids = list(dict.fromkeys(map(index, ids)))
    if not ids or min(ids) < 0 or max(ids) >= vocab_size:
        raise EngineError(f"the constraint allowed {ids}: needs token ids in [0, {vocab_size})")
    return ids
