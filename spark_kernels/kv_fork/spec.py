"""`kv_fork` as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spark_kernels._C import BlockPool
from spark_kernels.kv_fork.op import kv_fork
from spark_kernels.kv_fork.reference import kv_fork_reference
from spark_kernels.spec import Argument, OpSpec, Sizes

BLOCK = ("N", "H", "S", "D")


def init(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Return the caches of L layers and the pairs of one fork of a block with `used` tokens."""
    pool = BlockPool(sizes["N"], sizes["S"])
    parent = pool.open()
    pool.append(parent, sizes["used"])
    _, pairs = pool.fork(parent, sizes["B"])
    shape = tuple(sizes[axis] for axis in BLOCK)
    buffers = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2 * sizes["L"])]
    return {"buffers": buffers, "pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3)}


def call(**inputs: Any) -> tuple[Tensor, ...]:
    """Return the caches after the fork."""
    kv_fork(**inputs)
    return tuple(inputs["buffers"])


def definition(**inputs: Any) -> tuple[Tensor, ...]:
    """Return the caches the reference makes of the same inputs."""
    kv_fork_reference(**inputs)
    return tuple(inputs["buffers"])


CASES = (
    {"L": 1, "N": 2, "H": 1, "S": 4, "D": 8, "B": 0, "used": 3},
    {"L": 2, "N": 5, "H": 3, "S": 7, "D": 24, "B": 4, "used": 6},
    {"L": 3, "N": 9, "H": 2, "S": 16, "D": 128, "B": 8, "used": 16},
    {"L": 3, "N": 9, "H": 2, "S": 16, "D": 128, "B": 8, "used": 15},
)

SPEC = OpSpec(
    name="kv_fork",
    summary="copies the used tokens of a partly filled KV block to forked children, in all layers",
    axes={
        "L": "layers",
        "N": "blocks",
        "H": "key/value heads",
        "S": "tokens a block holds",
        "D": "head_dim",
        "B": "children",
        "pair": "source block, destination block, used tokens",
        "used": "tokens in the parent's last block",
    },
    inputs={
        "buffers": Argument(BLOCK, "float", "K and V of every layer; NHD swaps H and S; written"),
        "pairs": Argument(("B", "pair"), "int64", "as BlockPool.fork returns them"),
    },
    outputs={"buffers": Argument(BLOCK, "float", "the same tensors")},
    call=call,
    reference=definition,
    init=init,
    cases=CASES,
    tolerance={torch.float32: 0.0, torch.bfloat16: 0.0},
    # the source is read once, every child's copy is written
    bytes=lambda sizes, element: (
        (1 + sizes["B"]) * 2 * sizes["L"] * sizes["H"] * sizes["used"] * sizes["D"] * element
    ),
    flops=lambda sizes: 0,
)
