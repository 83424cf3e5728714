"""What `kv_fork` does, in plain torch."""

from __future__ import annotations

from torch import Tensor


def kv_fork_reference(buffers: list[Tensor], pairs: Tensor, layout: str = "HND") -> None:
    """Copy one pair and one buffer at a time; arguments as in `kv_fork`."""
    for source, destination, used in pairs.tolist():
        for buffer in buffers:
            tokens = buffer if layout == "NHD" else buffer.transpose(1, 2)
            tokens[destination, :used] = tokens[source, :used]
