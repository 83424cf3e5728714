"""tree_attention against one plain fp64 attention per sequence, over every way to share blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import BlockPool, kv_fork, tree_attention
from spark_kernels.tree_attention.reference import tree_attention_reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass
class World:
    """A pool with caches full of NaN, filled only by the op itself."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 4
    num_blocks: int = 256
    dtype: torch.dtype = torch.float32
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        self.pool = BlockPool(self.num_blocks, self.block_size)
        shape = (self.num_blocks, self.kv_heads, self.block_size, self.dim)
        self.caches = [torch.full(shape, torch.nan, dtype=self.dtype) for _ in range(2)]
        self.options = {"scale": self.dim**-0.5, **self.options}

    def inputs(self, tokens: int) -> list[torch.Tensor]:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        return [torch.randn(tokens, h, self.dim).to(self.dtype) for h in heads]

    def step(self, queries: dict[int, int], share: bool = True) -> torch.Tensor:
        """Append and attend; check the result and the caches against the reference."""
        for seq, n in queries.items():
            self.pool.append(seq, n)
        plan = self.pool.plan(list(queries), list(queries.values()), share=share)
        q, k, v = self.inputs(sum(queries.values()))
        expected_caches = [cache.double() for cache in self.caches]
        wide = (q.double(), k.double(), v.double())
        expected = tree_attention_reference(*wide, *expected_caches, plan, **self.options)
        out = tree_attention(q, k, v, *self.caches, plan, **self.options)
        for cache, wanted in zip(self.caches, expected_caches, strict=True):
            torch.testing.assert_close(cache.double(), wanted, rtol=0, atol=0, equal_nan=True)
        error = (out.double() - expected).abs()
        assert error.numel() == 0 or error.max() <= TOLERANCE[self.dtype]
        return out

    def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        children, pairs = self.pool.fork(seq, n, at)
        kv_fork(self.caches, pairs)
        return children


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [8, 16, 24, 40, 64, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1)])
def test_prefill_extend_decode_mixed(dtype, dim, heads, kv_heads):
    world = World(dtype=dtype, dim=dim, heads=heads, kv_heads=kv_heads)
    a, b, c = (world.pool.open() for _ in range(3))
    world.step({a: 37})
    world.step({a: 1, b: 70})
    world.step({c: 5, a: 9, b: 1})
    children = world.fork(a, 3) + world.fork(b, 2, at=66)
    world.step(dict.fromkeys([*children, b], 1))
    world.step({children[1]: 6, children[0]: 1, c: 1})


OPTIONS = [{"window": 1}, {"window": 5}, {"window": 64}, {"softcap": 2.0}]


@pytest.mark.parametrize("options", [*OPTIONS, {"window": 7, "softcap": 1.5}])
def test_window_and_softcap(options):
    world = World(options=options)
    a = world.pool.open()
    world.step({a: 150})
    children = world.fork(a, 4, at=147)
    world.step({children[0]: 1, children[1]: 30, children[2]: 1, a: 2})


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_irregular_trees(data):
    draw = data.draw
    world = World(block_size=draw(st.sampled_from([1, 3, 4, 16])), num_blocks=2000)
    live = [world.pool.open()]
    world.step({live[0]: draw(st.integers(1, 80))})
    for _ in range(draw(st.integers(1, 5))):
        parent = draw(st.sampled_from(live))
        at = draw(st.integers(0, world.pool.length(parent)))
        live += world.fork(parent, draw(st.integers(1, 3)), at)
        chosen = draw(st.lists(st.sampled_from(live), min_size=1, unique=True))
        world.step({seq: draw(st.sampled_from([1, 1, 2, 11])) for seq in chosen})
