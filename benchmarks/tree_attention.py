"""`tree_attention` with and without sharing, and against torch's attention on gathered keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Case, compare, interleave
from spark_kernels import BlockPool, tree_attention
from spark_kernels.tree_attention.reference import tree_attention_reference

# query heads, key/value heads, head_dim
MODELS = {"Qwen2.5-1.5B": (12, 2, 128), "Qwen3-0.6B": (16, 8, 128), "tiny": (4, 2, 32)}


@dataclass(frozen=True)
class Work:
    """One step: `leaves` siblings over a shared prefix, or strangers of the same length."""

    model: str
    dtype: torch.dtype
    prefix: int
    leaves: int
    own: int
    queries: int = 1
    siblings: bool = True


def run(quick: bool = False) -> list[Case]:
    """Return the cases of the suite; siblings over 4,096 tokens have the target."""
    big, middle, tiny = MODELS
    rounds = 5 if quick else 15
    shared = [
        Work(model, dtype, 4096, 16, 64)
        for model in (big, middle)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    if quick:
        return [decode(work, rounds, target=3) for work in shared]
    more = [
        Work(big, torch.bfloat16, 512, 8, 64),
        Work(tiny, torch.float32, 300, 32, 64),
        Work(big, torch.bfloat16, 1024, 16, 64, siblings=False),
        Work(tiny, torch.float32, 300, 32, 1, siblings=False),
    ]
    prefill = [
        Work(model, torch.float32, 0, 1, 0, queries, siblings=False)
        for model, queries in ((big, 512), (tiny, 512))
    ]
    return [
        *(decode(work, rounds, target=3) for work in shared),
        *(decode(work, rounds, target=None if work.siblings else 0.95) for work in more),
        *(against_torch(work, rounds) for work in prefill),
    ]


def decode(work: Work, rounds: int, target: float | None) -> Case:
    """Time one step with sharing against the same op without."""
    step = Step(work)
    return compare(
        op="tree_attention",
        case=step.case,
        ours=lambda: step.attend(share=True),
        baselines={"unshared": lambda: step.attend(share=False)},
        correct=step.agrees,
        floor=step.flops / matmul_flops(work.dtype),
        targets=None if target is None else {"unshared": target},
        rounds=rounds,
    )


@cache
def matmul_flops(dtype: torch.dtype) -> float:
    """Return what torch's matrix product reaches here, in flop/s: the bound of the arithmetic."""
    size = 1024
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = interleave({"matmul": lambda: a @ b}, rounds=15)["matmul"].min
    return 2 * size**3 / seconds


def against_torch(work: Work, rounds: int) -> Case:
    """Time the prefill of one sequence against torch's attention."""
    step = Step(work)
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (step.q, step.k, step.v))
    return compare(
        op="tree_attention",
        case=step.case,
        ours=lambda: step.attend(share=True),
        baselines={
            "torch": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        },
        correct=step.agrees,
        rounds=rounds,
    )


class Step:
    """The inputs of one call."""

    def __init__(self, work: Work):
        heads, kv_heads, dim = MODELS[work.model]
        length = work.own + work.queries
        pool = BlockPool(work.leaves * ((work.prefix + length) // 16 + 2) + 1, 16)
        if work.siblings:
            trunk = pool.open()
            pool.append(trunk, work.prefix)
            leaves, _ = pool.fork(trunk, work.leaves)
        else:
            leaves = [pool.open() for _ in range(work.leaves)]
            length += work.prefix
        for leaf in leaves:
            pool.append(leaf, length)
        queries = [work.queries] * work.leaves
        self.plans = {share: pool.plan(leaves, queries, share=share) for share in (True, False)}
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(work.dtype)

        tokens = work.leaves * work.queries
        self.q = normal(tokens, heads, dim)
        self.k, self.v = normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
        self.caches = [normal(pool.num_blocks, kv_heads, 16, dim) for _ in range(2)]
        self.out = torch.empty_like(self.q)
        self.scale = dim**-0.5
        # two products of head_dim for every query head and visible key
        self.flops = 4 * dim * heads * tokens * (work.prefix + work.own)
        self.tolerance = 1e-5 if work.dtype == torch.float32 else 1e-2
        self.case = {
            "model": work.model,
            "dtype": str(work.dtype).removeprefix("torch."),
            "prefix": work.prefix,
            "leaves": work.leaves,
            "own": work.own,
            "queries": work.queries,
            "siblings": work.siblings,
        }

    def attend(self, share: bool) -> Tensor:
        """Run the op."""
        inputs = (self.q, self.k, self.v, *self.caches, self.plans[share])
        return tree_attention(*inputs, scale=self.scale, out=self.out)

    def agrees(self) -> bool:
        """Return whether both ways of running it agree with the fp64 reference."""
        wide = [t.double() for t in (self.q, self.k, self.v, *self.caches)]
        want = tree_attention_reference(*wide, self.plans[True], scale=self.scale)
        errors = [(self.attend(share).double() - want).abs().max() for share in (True, False)]
        return max(errors).item() <= self.tolerance
