"""`kv_fork`: give forked children their own copy of a partly filled KV block, in all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spark_kernels import _load
from spark_kernels.kv_fork.reference import kv_fork_reference

COMPILED = frozenset(device for device in ("cpu", "cuda") if _load.has("kv_fork", device))


def kv_fork(
    buffers: list[Tensor], pairs: Tensor | Sequence[Sequence[int]], layout: str = "HND"
) -> None:
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
        ValueError: unknown layout; buffers that differ; a block or a token count out of range;
            colliding destinations. Nothing was written.
    """
    if layout not in ("HND", "NHD"):
        raise ValueError(f"layout must be 'HND' or 'NHD', got {layout!r}")
    triples = pairs.tolist() if isinstance(pairs, Tensor) else pairs
    if not triples or not buffers:
        return
    first = buffers[0]
    check_pairs(triples, first.shape[0], first.shape[2 if layout == "HND" else 1])
    for buffer in buffers:
        if buffer.shape != first.shape or buffer.dtype != first.dtype or not buffer.is_contiguous():
            raise ValueError("buffers must be contiguous, of one shape and dtype")
    # the kernels read a source once for all its destinations: put those next to each other
    table = torch.tensor(sorted(triples)).to(first.device, non_blocking=True)
    if first.device.type in COMPILED:
        torch.ops.spark.kv_fork(buffers, table, layout == "NHD")
    else:
        kv_fork_reference(buffers, table, layout)


def check_pairs(triples: Sequence[Sequence[int]], num_blocks: int, block_size: int) -> None:
    """Raise ValueError unless the triples can be copied in any order."""
    for triple in triples:
        if len(triple) != 3 or not all(isinstance(value, int) for value in triple):
            raise ValueError(f"pairs: each must be 3 int (source, destination, used), got {triple}")
        source, destination, used = triple
        if not (0 <= source < num_blocks and 0 <= destination < num_blocks):
            raise ValueError(f"pairs: blocks {source} -> {destination} not in [0, {num_blocks})")
        if not 0 <= used <= block_size:
            raise ValueError(f"pairs: used tokens must be in [0, {block_size}], got {used}")
    destinations = {triple[1] for triple in triples}
    if len(destinations) < len(triples):
        raise ValueError("pairs: two of them have the same destination block")
    if clash := destinations & {triple[0] for triple in triples}:
        raise ValueError(f"pairs: block {min(clash)} is both a source and a destination")


if "cpu" in COMPILED:
    torch.library.register_fake("spark::kv_fork", lambda *_: None)
