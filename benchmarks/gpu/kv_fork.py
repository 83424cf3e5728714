"""`kv_fork` on the caches of Qwen2.5-7B against indexing layer by layer and whole-block copies."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.device import (
    Measurement,
    clock,
    copies_to_stay_cold,
    floor,
    in_a_graph,
    rotate,
    within,
)
from benchmarks.harness import Case, compare
from benchmarks.kv_fork import agrees
from spark_kernels import BlockPool, kv_fork

LAYERS, HEADS, DIM, SIZE = 28, 4, 128, 16


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return forks into few and many children of a block with 15 of 16 tokens used."""
    children = (2,) if quick else (1, 8, 32, 256)
    return [partial(fork, b, 15, device, quick) for b in children]


def whole_blocks(buffers: list[Tensor], source: Tensor, destination: Tensor) -> None:
    """Copy entire blocks, one indexed copy a buffer."""
    for buffer in buffers:
        buffer.index_copy_(0, destination, buffer.index_select(0, source))


def per_layer(buffers: list[Tensor], source: Tensor, destination: Tensor, used: int) -> None:
    """Copy the used tokens with one indexed assignment a buffer; all indices are on the device."""
    for buffer in buffers:
        buffer[destination, :, :used] = buffer[source, :, :used]


def fork(children: int, used: int, device: torch.device, quick: bool) -> list[Case]:
    """Time one fork, by the host and in a graph; sources take turns and leave the L2 cache."""
    layers = 2 if quick else LAYERS
    moved = (1 + children) * used * 2 * layers * HEADS * DIM * 2
    sources = copies_to_stay_cold(moved, quick)
    pool = BlockPool(sources * (children + 1), SIZE)
    shape = (pool.num_blocks, HEADS, SIZE, DIM)
    buffers = [torch.randn(shape, device=device).bfloat16() for _ in range(2 * layers)]
    tables = []
    for _ in range(sources):
        parent = pool.open()
        pool.append(parent, used)
        tables.append(torch.tensor(pool.fork(parent, children)[1]))
    columns = [(t[:, 0].to(device), t[:, 1].to(device)) for t in tables]
    shapes = {"model": "Qwen2.5-7B", "B": children, "used": used, "dtype": "bfloat16"}
    least = floor(moved, device, quick)

    def ours(pairs: Tensor) -> None:
        kv_fork(buffers, pairs)

    launched = compare(
        op="kv_fork",
        case=shapes,
        ours=rotate(ours, tables),
        baselines={
            "per layer": rotate(lambda pair: per_layer(buffers, *pair, used), columns),
            "whole blocks": rotate(lambda pair: whole_blocks(buffers, *pair), columns),
        },
        correct=lambda: agrees(buffers, tables[0]),
        floor=least,
        targets={"per layer": 20},
        rounds=3 if quick else 15,
        clock=clock(device),
    )
    graph = in_a_graph("kv_fork", shapes, ours, tables, least, device, quick)
    # bitwise, or it would not have been timed
    launched.error = graph.error = 0.0
    if children >= 32:
        graph.target = {"floor": 0.7}
        graph.met = graph.fraction_of_floor >= 0.7
    return [launched, within(graph, 8e-3) if children == 8 else graph]
