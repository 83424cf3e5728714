"""A pool of sequences that attends with the op and checks every step against fp64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from spark_kernels import BlockPool, kv_fork, tree_attention
from spark_kernels.tree_attention import DevicePlan
from spark_kernels.tree_attention.reference import tree_attention_reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class World:
    """A pool with caches full of NaN, filled only by the op itself."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 4
    num_blocks: int = 256
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    schedule: dict[str, Any] | None = None
    """Options of the GPU's work list; None = the op of the CPU."""

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks, self.block_size)
        shape = (self.num_blocks, self.kv_heads, self.block_size, self.dim)
        nan = {"fill_value": torch.nan, "dtype": self.dtype, "device": self.device}
        self.caches = [torch.full(shape, **nan) for _ in range(2)]
        self.options = {"scale": self.dim**-0.5, **self.options}

    def inputs(self, tokens: int) -> list[torch.Tensor]:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        return [torch.randn(tokens, h, self.dim).to(self.device, self.dtype) for h in heads]

    def plan(self, queries: dict[int, int], share: bool = True) -> Any:
        plan = self.pool.plan(list(queries), list(queries.values()), share=share)
        return plan if self.schedule is None else DevicePlan(plan, self.device, **self.schedule)

    def step(self, queries: dict[int, int], share: bool = True) -> torch.Tensor:
        """Append and attend; check the result and the caches against the reference."""
        for seq, n in queries.items():
            self.pool.append(seq, n)
        q, k, v = self.inputs(sum(queries.values()))
        host = self.pool.plan(list(queries), list(queries.values()))
        expected_caches = [cache.double().cpu() for cache in self.caches]
        wide = (x.double().cpu() for x in (q, k, v))
        expected = tree_attention_reference(*wide, *expected_caches, host, **self.options)
        out = tree_attention(q, k, v, *self.caches, self.plan(queries, share), **self.options)
        for cache, wanted in zip(self.caches, expected_caches, strict=True):
            same = cache.double().cpu()
            torch.testing.assert_close(same, wanted, rtol=0, atol=0, equal_nan=True)
        error = (out.double().cpu() - expected).abs()
        if self.device != "cpu" and self.dtype == torch.bfloat16:
            # the rounding of the result alone is 2^-8 of it
            error /= expected.abs().clamp(min=1)
        assert error.numel() == 0 or error.max() <= TOLERANCE[self.dtype]
        return out

    def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        children, pairs = self.pool.fork(seq, n, at)
        for source, target, used in pairs if self.device != "cpu" else ():
            for cache in self.caches:
                cache[target, :, :used] = cache[source, :, :used]
        if self.device == "cpu":
            kv_fork(self.caches, pairs)
        return children


def siblings(world: World, prefix: int = 200, n: int = 6) -> list[int]:
    """Return `n` forks of `prefix` tokens, each with a few of its own."""
    root = world.pool.open()
    world.step({root: prefix})
    children = world.fork(root, n)
    world.step({child: 3 + i for i, child in enumerate(children)})
    return children


def decode(
    world: World, seqs: list[int], tokens: list[torch.Tensor], share: bool = True
) -> torch.Tensor:
    """Attend one token of each sequence without checking, on copies of the caches."""
    plan = world.plan(dict.fromkeys(seqs, 1), share)
    caches = [cache.clone() for cache in world.caches]
    return tree_attention(*tokens, *caches, plan, **world.options)
