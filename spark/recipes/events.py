"""What a running recipe reports while it works: one `Progress` per step and phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["load", "evaluate", "rollout", "train", "save", "done"]


@dataclass(kw_only=True, slots=True, frozen=True)
class Progress:
    """A snapshot of the run, for live display.

    Example:
        Progress(phase="rollout", arm="spark", step=3, success=0.41, tokens_per_s=5200.0,
                 reused_share=0.23, forks=40, done_share=0.2, eta_s=310.0)
    """

    phase: Phase
    arm: str | None = None
    """Arm of the experiment; None while it does not matter which."""
    step: int = 0
    """Training step of the arm, from 0."""
    split: str | None = None
    """Split being evaluated."""
    success: float | None = None
    """Latest success on the fixed evaluation set of `split` (never of training batches)."""
    tokens_per_s: float | None = None
    """Sampled tokens a second of the last rollout."""
    reused_share: float | None = None
    """Reused over reused + generated tokens of the arm so far."""
    forks: int = 0
    """Forks of the arm so far."""
    done_share: float = 0.0
    """Share of the whole run that is done, 0 to 1."""
    eta_s: float | None = None
    """Estimated seconds left."""


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Report nothing."""
