"""`kv_fork`: give forked children their own copy of a partly filled KV block, in all layers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

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
    if not len(pairs) or not buffers:
        return
    # the kernels read a source once for all its destinations: put those next to each other
    triples = sorted(pairs.tolist() if isinstance(pairs, Tensor) else pairs)
    table = as_table(triples)
    first = buffers[0]
    if first.device.type not in COMPILED:
        check_pairs(triples, first, layout)
        return kv_fork_reference(buffers, table, layout)
    try:
        torch.ops.spark.kv_fork(buffers, table, layout == "NHD")
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if "kv_fork: " not in said:
            # the device's own trouble
            raise
        check_pairs(triples, first, layout)
        # drop the place in the C++ source
        raise ValueError(said.rpartition("kv_fork: ")[2]) from error


def as_table(triples: Sequence[Sequence[int]]) -> Tensor:
    """Return the triples as int64 [n, 3], several times faster than torch.tensor does."""
    try:
        words = array("q", chain.from_iterable(triples))
    except TypeError:
        words = None
    if words is None or set(map(len, triples)) != {3}:
        raise ValueError("pairs must be int64 [n, 3]: source block, destination block, used tokens")
    return torch.frombuffer(words, dtype=torch.int64).view(-1, 3)


def check_pairs(triples: Sequence[Sequence[int]], buffer: Tensor, layout: str) -> None:
    """Raise ValueError unless the triples can be copied in any order."""
    if buffer.dim() != 4:
        raise ValueError(f"buffers must have 4 axes, got {buffer.dim()}")
    num_blocks, block_size = buffer.shape[0], buffer.shape[2 if layout == "HND" else 1]
    sources, destinations, used = zip(*triples, strict=True)
    blocks = (*sources, *destinations)
    if min(blocks) < 0 or max(blocks) >= num_blocks:
        raise ValueError(f"pairs: blocks must be in [0, {num_blocks}), got {triples}")
    if min(used) < 0 or max(used) > block_size:
        raise ValueError(f"pairs: used tokens must be in [0, {block_size}], got {triples}")
    if len(set(destinations)) < len(destinations):
        raise ValueError(f"pairs: two have the same destination block: {triples}")
    if clash := set(sources) & set(destinations):
        raise ValueError(f"pairs: block {min(clash)} is both a source and a destination")


if "cpu" in COMPILED:
    torch.library.register_fake("spark::kv_fork", lambda *_: None)
