"""`kv_fork` against per-layer torch indexing, on the caches of Qwen2.5-1.5B."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Case, compare, copy_seconds
from spark_kernels import BlockPool, kv_fork
from spark_kernels.kv_fork.reference import kv_fork_reference

LAYERS, HEADS, DIM, SIZE = 28, 2, 128, 16


def run(quick: bool = False) -> list[Case]:
    """Return the cases of the suite; B = 8 with half a block used, the mean, has the target."""
    children = (8,) if quick else (1, 8, 32)
    return [fork(b, used, 5 if quick else 15) for b in children for used in (8, 15)]


def fork(children: int, used: int, rounds: int) -> Case:
    """Time one fork of a sequence whose last block holds `used` tokens."""
    pool = BlockPool(512, SIZE)
    parent = pool.open()
    pool.append(parent, SIZE * 100 + used)
    _, pairs = pool.fork(parent, children)
    shape = (pool.num_blocks, HEADS, SIZE, DIM)
    buffers = [torch.randn(shape).bfloat16() for _ in range(2 * LAYERS)]
    table = torch.tensor(pairs)
    nbytes = (1 + children) * 2 * LAYERS * HEADS * used * DIM * 2
    return compare(
        op="kv_fork",
        case={"model": "Qwen2.5-1.5B", "B": children, "used": used, "dtype": "bfloat16"},
        ours=lambda: kv_fork(buffers, pairs),
        baselines={"torch": lambda: index_per_layer(buffers, table)},
        correct=lambda: agrees(buffers, table),
        floor=copy_seconds(nbytes),
        targets={"torch": 20} if (children, used) == (8, 8) else None,
        rounds=rounds,
    )


def index_per_layer(buffers: list[Tensor], pairs: Tensor) -> None:
    """Copy the used tokens with one indexed assignment a buffer."""
    source, destination = pairs[:, 0], pairs[:, 1]
    used = int(pairs[0, 2])
    for buffer in buffers:
        buffer[destination, :, :used] = buffer[source, :, :used]


def agrees(buffers: list[Tensor], pairs: Tensor) -> bool:
    """Return whether op, baseline and reference leave the same caches."""
    ours, theirs, want = ([b.clone() for b in buffers[:4]] for _ in range(3))
    kv_fork(ours, pairs)
    index_per_layer(theirs, pairs)
    kv_fork_reference(want, pairs)
    return all(
        torch.equal(a, c) and torch.equal(b, c) for a, b, c in zip(ours, theirs, want, strict=True)
    )
