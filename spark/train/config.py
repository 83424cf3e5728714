"""Constants of training. No torch here: a command's help imports them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def at_least(config: Any, **least: int) -> None:
    """Raise ValueError for a field of `config` below its bound."""
    for name, bound in least.items():
        if not (value := getattr(config, name)) >= bound:
            raise ValueError(f"{name}={value} must be >= {bound}")


@dataclass(kw_only=True, slots=True, frozen=True)
class LossConfig:
    """Constants of the objective."""

    clip_low: float = 0.2
    """A ratio below 1 - clip_low earns nothing more."""
    clip_high: float = 0.25
    """A ratio above 1 + clip_high earns nothing more."""
    kl: float = 0.01
    """Weight of the KL divergence to the reference; 0 = no reference is kept."""
    entropy: float = 0.0
    """Weight of a bonus for entropy, nats a token; 0 = none."""
    importance_cap: float = 2.0
    """Bound of the correction trainer probability / engine probability."""

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0, kl=0, importance_cap=0)


@dataclass(kw_only=True, slots=True, frozen=True)
class SftConfig:
    """How a model imitates episodes. Many small steps: their number decides, not the tokens."""

    steps: int = 1000
    """Optimiser steps."""
    batch_tokens: int = 2048
    """Tokens of a step at most."""
    matrix_lr: float = 0.02
    """Learning rate of Muon on the hidden matrices."""
    lr: float = 3e-3
    """Learning rate of AdamW on the rest."""
    bf16: bool | None = None
    """Compute in bfloat16, weights stay float32; None = where there is a GPU."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch_tokens=1, matrix_lr=0, lr=0)
