"""Where a model can run."""

from __future__ import annotations

import torch


def usable(device: str) -> torch.device:
    """Return `device`. Raises ValueError where torch has no such device here."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        # a torch without CUDA asserts
        raise ValueError(
            f"device={device!r} cannot be used ({error}); use cpu, or see spark doctor"
        ) from error
