"""Weights on their way to an engine in another process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

State = Mapping[str, torch.Tensor]

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
"""Memory that looks like a folder, where this machine has it; None = the temporary folder."""


def whole(state: State) -> dict[str, torch.Tensor]:
    """Return the tensors on the host; one that several names share is there for each of them."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


@contextmanager
def as_folder(state: State, where: Path | None = MEMORY) -> Iterator[Path]:
    """Write `state` as model.safetensors into a new folder in `where`; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="spark-weights-", dir=where) as folder:
        save_file(whole(state), Path(folder) / "model.safetensors", {"format": "pt"})
        yield Path(folder)
