"""Where Triton launches: on the current device, whatever its arguments lie on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which `device` is the current one; on a CPU it does nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
