"""`tree_attention` as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spark_kernels._C import BlockPool
from spark_kernels.spec import Argument, OpSpec, Sizes
from spark_kernels.tree_attention.op import tree_attention
from spark_kernels.tree_attention.reference import tree_attention_reference

QUERIES, NEW, CACHE = ("T", "H", "D"), ("T", "G", "D"), ("N", "G", "S", "D")


def init(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Return `B` siblings that share `P` tokens, have `own` tokens each and query their last `Q`.

    Cache slots behind the last token of a sequence are infinite: reading one would show.
    """
    group = sizes["B"] * (-(-(sizes["own"] + sizes["Q"]) // sizes["S"]) + 1)
    pool = BlockPool(-(-sizes["P"] // sizes["S"]) + group, sizes["S"])
    trunk = pool.open()
    pool.append(trunk, sizes["P"])
    leaves, _ = pool.fork(trunk, sizes["B"])
    for leaf in leaves:
        pool.append(leaf, sizes["own"] + sizes["Q"])
    plan = pool.plan(leaves, [sizes["Q"]] * len(leaves))
    caches = []
    for _ in range(2):
        cache = torch.randn(
            (pool.num_blocks, sizes["G"], sizes["S"], sizes["D"]), generator=generator
        ).to(dtype)
        for seq in leaves:
            if tail := pool.length(seq) % sizes["S"]:
                cache[pool.table(seq)[-1], :, tail:] = torch.inf
        caches.append(cache)
    tokens = sizes["B"] * sizes["Q"]
    q, k, v = (
        torch.randn((tokens, sizes[heads], sizes["D"]), generator=generator).to(dtype)
        for heads in "HGG"
    )
    cached = {"k_cache": caches[0], "v_cache": caches[1]}
    return {"q": q, "k": k, "v": v, **cached, "plan": plan, "scale": sizes["D"] ** -0.5}


def call(**inputs: Any) -> tuple[Tensor, ...]:
    """Return the attention and the caches."""
    return tree_attention(**inputs), inputs["k_cache"], inputs["v_cache"]


def definition(**inputs: Any) -> tuple[Tensor, ...]:
    """Return what the reference makes of the same inputs in fp64."""
    dtype = inputs["q"].dtype
    wide: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    out = tree_attention_reference(**wide)
    return tuple(x.to(dtype) for x in (out, wide["k_cache"], wide["v_cache"]))


def case(**sizes: int) -> Sizes:
    """Return sizes with the usual ones filled in."""
    return {"B": 3, "P": 40, "own": 5, "Q": 1, "H": 4, "G": 2, "D": 16, "S": 4, **sizes}


SPEC = OpSpec(
    name="tree_attention",
    summary="paged causal attention that reads the blocks siblings share once",
    axes={
        "B": "siblings",
        "P": "tokens they share",
        "own": "tokens of each that are cached",
        "Q": "query tokens of each",
        "T": "query tokens, B * Q",
        "H": "query heads",
        "G": "key/value heads",
        "D": "head_dim",
        "N": "blocks",
        "S": "tokens a block holds",
    },
    inputs={
        "q": Argument(QUERIES, "float", "sequences in plan order"),
        "k": Argument(NEW, "float", "written to the cache before attending"),
        "v": Argument(NEW, "float", "as k"),
        "k_cache": Argument(CACHE, "float", "written"),
        "v_cache": Argument(CACHE, "float", "written"),
    },
    outputs={
        "out": Argument(QUERIES, "float", "attention of every query"),
        "k_cache": Argument(CACHE, "float", "the same tensor"),
        "v_cache": Argument(CACHE, "float", "the same tensor"),
    },
    call=call,
    reference=definition,
    init=init,
    cases=(
        case(B=0),
        case(B=1, P=0, own=0, Q=33),
        case(P=39, own=0, Q=7),
        case(B=5, P=130, D=40, H=7, G=1),
        case(B=16, P=512, D=128, H=12, S=16),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2},
    # keys and values of the shared prefix once, of the branches each, queries and output
    bytes=lambda s, element: (
        element
        * s["D"]
        * (
            2 * s["G"] * (s["P"] + s["B"] * (s["own"] + s["Q"]))
            + 2 * s["B"] * s["Q"] * (s["H"] + s["G"])
        )
    ),
    flops=lambda s: 4 * s["B"] * s["Q"] * s["H"] * s["D"] * (s["P"] + s["own"] + (s["Q"] + 1) // 2),
)
