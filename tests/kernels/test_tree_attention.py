"""tree_attention against one plain fp64 attention per sequence, over every way to share blocks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from attention_world import World, decode, siblings
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import BlockPool, tree_attention
from spark_kernels.tree_attention import plan_tensor
from spark_kernels.tree_attention.reference import tree_attention_reference

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.fixture(params=["plain", "avx2", "avx512"])
def isa(request, monkeypatch):
    monkeypatch.setenv("SPARK_ISA", request.param)
    if torch.ops.spark.cpu_isa() != ["plain", "avx2", "avx512"].index(request.param):
        pytest.skip(f"this machine has no {request.param}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 24, 64, 128])
def test_every_instruction_set(isa, dtype, dim):
    world = World(dtype=dtype, dim=dim, heads=6, options={"softcap": 5.0, "window": 90})
    a = world.pool.open()
    world.step({a: 77})
    children = world.fork(a, 5, at=75)
    world.step(dict.fromkeys(children, 1))
    world.step({children[2]: 1, children[0]: 20, a: 1})


@pytest.mark.parametrize("share", [True, False])
def test_order_of_branches_is_irrelevant(share):
    world = World()
    seqs = siblings(world)
    tokens = world.inputs(len(seqs))
    out = decode(world, seqs, tokens, share)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = decode(world, [seqs[i] for i in order], [t[order] for t in tokens], share)
    torch.testing.assert_close(shuffled, out[order], rtol=0, atol=0)


def test_sharing_changes_rounding_only():
    world = World()
    seqs = siblings(world, n=16)
    tokens = world.inputs(len(seqs))
    apart = decode(world, seqs, tokens, share=False)
    torch.testing.assert_close(decode(world, seqs, tokens), apart, rtol=0, atol=2e-6)


def test_unshared_result_is_the_same_alone_and_in_a_batch():
    world = World(num_blocks=4000)
    seqs = siblings(world, prefix=3000)
    tokens = world.inputs(len(seqs))
    out = decode(world, seqs, tokens, share=False)
    alone = decode(world, seqs[2:3], [t[2:3] for t in tokens], share=False)
    torch.testing.assert_close(alone, out[2:3], rtol=0, atol=0)


def test_threads_do_not_change_a_bit():
    world = World(num_blocks=4000, heads=12, dim=64)
    seqs = siblings(world, prefix=2500, n=9)
    tokens = world.inputs(len(seqs))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(decode(world, seqs, tokens))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_nan_stays_in_its_sequence():
    world = World()
    seqs = siblings(world)
    tokens = world.inputs(len(seqs))
    clean = decode(world, seqs, tokens)
    tokens[1][2], tokens[0][4] = torch.nan, torch.nan
    out = decode(world, seqs, tokens)
    assert out[[2, 4]].isnan().any((1, 2)).all()
    rest = [0, 1, 3, 5]
    torch.testing.assert_close(out[rest], clean[rest], rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e15])
def test_extreme_values(size):
    world = World()
    a = world.pool.open()
    world.pool.append(a, 50)
    plan = world.pool.plan([a], [50])
    q, k, v = world.inputs(50)
    q, k = q * size, k * size
    # scores too far apart for rounding to matter: one key takes all
    expected = tree_attention_reference(
        q.double(), k.double(), v.double(), *(c.double() for c in world.caches), plan, scale=1.0
    )
    out = tree_attention(q, k, v, *world.caches, plan, scale=1.0)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_empty_batch():
    world = World()
    out = world.step({})
    assert out.shape == (0, world.heads, world.dim)


def test_strided_views_and_out():
    """Views as transformers hands them over: [1, heads, T, D] transposed, parts of a tensor."""
    world = World()
    a = world.pool.open()
    world.pool.append(a, 9)
    plan = world.pool.plan([a], [9])
    q, k, v = world.inputs(9)
    expected = tree_attention(q, k, v, *[c.clone() for c in world.caches], plan, scale=1.0)
    packed = torch.cat([q, k, v], dim=1)
    q, k, v = packed.split([world.heads, world.kv_heads, world.kv_heads], dim=1)
    q = q.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((9, world.heads + 1, world.dim), 5.0)
    out = wide[:, 1:]
    assert tree_attention(q, k, v, *world.caches, plan, scale=1.0, out=out) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert (wide[:, 0] == 5.0).all()


def test_a_longer_plan_tensor_and_compilation():
    world = World()
    a = world.pool.open()
    world.pool.append(a, 9)
    plan = world.pool.plan([a], [9])
    q, k, v = world.inputs(9)
    expected = tree_attention(q, k, v, *[c.clone() for c in world.caches], plan, scale=1.0)
    words = torch.full((500,), -1, dtype=torch.int32)
    words[: len(plan_tensor(plan))] = plan_tensor(plan)
    step = torch.compile(
        lambda *inputs: tree_attention(*inputs, scale=1.0), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(step(q, k, v, *world.caches, words), expected, rtol=0, atol=0)


def test_a_plan_ends_with_its_last_reader():
    pool = BlockPool(4, 4)
    seq = pool.open()
    pool.append(seq, 3)
    words = weakref.ref(plan_tensor(pool.plan([seq], [3])))
    gc.collect()
    assert words() is None


GUARDED = """
import ctypes, mmap, sys, torch
from spark_kernels import BlockPool, tree_attention
dim, page = int(sys.argv[1]), mmap.PAGESIZE
size = 2 * 4 * dim
memory = mmap.mmap(-1, 2 * page)
libc = ctypes.CDLL(None, use_errno=True)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
# its end is the last that may be read
v_cache = torch.frombuffer(memory, dtype=torch.float32, count=size, offset=page - 4 * size)
v_cache = v_cache.zero_().view(1, 2, 4, dim)
pool = BlockPool(1, 4)
seq = pool.open()
pool.append(seq, 4)
inputs = [torch.ones(4, 2, dim) for _ in range(3)]
out = tree_attention(*inputs, torch.zeros(1, 2, 4, dim), v_cache, pool.plan([seq], [4]), scale=1.0)
assert torch.equal(out, torch.ones_like(out))
"""


@pytest.mark.parametrize("isa", ["", "plain"])
@pytest.mark.parametrize("dim", [8, 16, 24, 40, 64])
def test_nothing_behind_the_cache_is_read(isa, dim):
    environment = os.environ | ({"SPARK_ISA": isa} if isa else {})
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(dim)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


BAD = {
    "q must be": {"q": torch.zeros(2, 4, 16)},
    "q must be float32 or bfloat16": {"q": torch.zeros(3, 4, 16, dtype=torch.float16)},
    "q and k must have 3 axes": {"q": torch.zeros(3, 64)},
    "k must be": {"k": torch.zeros(2, 2, 16)},
    "4 query heads are no multiple of 3": {"k": torch.zeros(3, 3, 16)},
    "v must have q's dtype": {"v": torch.zeros(3, 2, 16, dtype=torch.bfloat16)},
    "v must be contiguous in its last axis": {"v": torch.zeros(3, 2, 32)[..., ::2]},
    "k_cache must be contiguous": {"k_cache": torch.zeros(3, 2, 4, 16)},
    "v_cache must have q's dtype": {"v_cache": torch.zeros(4, 2, 4, 16, dtype=torch.bfloat16)},
    "out must be": {"out": torch.zeros(3, 4, 8)},
    "window and softcap must be >= 0": {"window": -1},
    "scale must be > 0, got -1": {"scale": -1.0},
    "plan must be int32": {"plan": torch.zeros(40)},
    "plan is not one of BlockPool.plan": {"plan": torch.zeros(40, dtype=torch.int32)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_changes_nothing(message):
    pool = BlockPool(4, 4)
    seq = pool.open()
    pool.append(seq, 3)
    inputs = {
        "q": torch.zeros(3, 4, 16),
        "k": torch.ones(3, 2, 16),
        "v": torch.ones(3, 2, 16),
        "k_cache": torch.zeros(4, 2, 4, 16),
        "v_cache": torch.zeros(4, 2, 4, 16),
        "plan": pool.plan([seq], [3]),
        **BAD[message],
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        tree_attention(**{"scale": 1.0, **inputs})
    assert not inputs["k_cache"].any() and not inputs["v_cache"].any()


@pytest.mark.parametrize("dim", [4, 12, 264])
def test_unsupported_head_dim(dim):
    pool = BlockPool(4, 4)
    seq = pool.open()
    pool.append(seq, 1)
    x, cache = torch.zeros(1, 1, dim), torch.zeros(4, 1, 4, dim)
    with pytest.raises(ValueError, match=f"multiple of 8 up to 256, got {dim}"):
        tree_attention(x, x, x, cache, cache.clone(), pool.plan([seq], [1]), scale=1.0)
