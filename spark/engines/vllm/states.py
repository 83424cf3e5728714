"""The parameters that model runner V2 keeps of all requests, as `score` takes them for a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def chosen(kept: Any, usual: float, rows: Tensor, where: np.ndarray) -> Tensor | None:
    """Return one parameter of a batch [B]; None where all its requests leave it at `usual`.

    `kept` is a UvaBackedTensor of vLLM's; `rows` and `where` say which of its entries, to the
    device and to numpy.
    """
    return kept.gpu[rows] if (kept.np[where] != usual).any() else None
