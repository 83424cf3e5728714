"""`kv_fork`: give forked children their own copy of a partly filled KV block, in all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spark_kernels import _load
from spark_kernels.kv_fork.reference import kv_fork_reference


def kv_fork(buffers: list[Tensor], pairs: Tensor | Sequence, layout: str = "HND") -> None:
    """Copy the used tokens of source blocks to children's fresh blocks, in place.

    Args:
        buffers: K and V of all layers, one shape and dtype, contiguous:
            [num_blocks, num_kv_heads, block_size, head_dim] (HND) or
            [num_blocks, block_size, num_kv_heads, head_dim] (NHD).
        pairs: int64 [n, 3] on the host, or a list of triples as `BlockPool.fork` returns:
            source block, destination block, used tokens. Destinations must be distinct and no
            source may be one. n = 0 is fine.
        layout: "HND" or "NHD".

    Raises:
        ValueError: unknown layout; a block or a token count out of range; colliding destinations.
    """
    if layout not in ("HND", "NHD"):
        raise ValueError(f"layout must be 'HND' or 'NHD', got {layout!r}")
    triples = sorted(pairs.tolist() if isinstance(pairs, Tensor) else pairs)
    if not triples or not buffers:
        return
    num_blocks, block_size = buffers[0].shape[0], buffers[0].shape[2 if layout == "HND" else 1]
    check_pairs(triples, num_blocks, block_size)
    device = buffers[0].device
    table = torch.tensor(triples, dtype=torch.int64).to(device, non_blocking=True)
    if not _load.has("kv_fork", device.type):
        return kv_fork_reference(buffers, table, layout)
    torch.ops.spark.kv_fork(buffers, table, layout == "NHD")


def check_pairs(triples: list, num_blocks: int, block_size: int) -> None:
    """Raise ValueError unless the triples can be copied in any order."""
    for source, destination, used in triples:
        if not (0 <= source < num_blocks and 0 <= destination < num_blocks):
            raise ValueError(f"pairs: blocks {source} -> {destination} not in [0, {num_blocks})")
        if not 0 <= used <= block_size:
            raise ValueError(f"pairs: used tokens must be in [0, {block_size}], got {used}")
    destinations = {triple[1] for triple in triples}
    if len(destinations) < len(triples):
        raise ValueError("pairs: two of them have the same destination block")
    if clash := destinations & {triple[0] for triple in triples}:
        raise ValueError(f"pairs: block {min(clash)} is both a source and a destination")


if _load.has("kv_fork", "cpu"):
    torch.library.register_fake("spark::kv_fork", lambda *_: None)
