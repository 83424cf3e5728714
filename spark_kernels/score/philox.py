"""Philox4x32-10: the random number of a (seed, position) pair, the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of x * factor, for x int64 holding 32 bits."""
    # in two halves: the whole product does not fit a signed 64-bit integer
    low, high = (x & 0xFFFF) * factor, (x >> 16) * factor
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def words(seed: Tensor, position: Tensor) -> list[Tensor]:
    """Return the four 32-bit words of counter (position, 0) under key seed; int64 [B] each."""
    counter = [
        position & LOW,
        (position >> 32) & LOW,
        torch.zeros_like(seed),
        torch.zeros_like(seed),
    ]
    key = [seed & LOW, (seed >> 32) & LOW]
    for _ in range(10):
        high0, low0 = product(counter[0], MULTIPLIERS[0])
        high1, low1 = product(counter[2], MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(k + w) & LOW for k, w in zip(key, WEYL, strict=True)]
    return counter


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Return one float64 in [0, 1) for each (seed, position), int64 [B]; 53 random bits."""
    first, second, *_ = words(seed, position)
    return ((first << 21) | (second >> 11)).double() * 2.0**-53
