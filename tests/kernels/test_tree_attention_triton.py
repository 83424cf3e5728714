"""The GPU kernel of tree_attention: interpreted on the CPU, or on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from attention_world import TOLERANCE, World, decode, siblings
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import BlockPool, tree_attention
from spark_kernels.tree_attention import DevicePlan
from spark_kernels.tree_attention.reference import tree_attention_reference

pytest.importorskip("triton")
pytestmark = [pytest.mark.device, pytest.mark.usefixtures("poison")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies the bit patterns of bfloat16
DTYPES = TOLERANCE if DEVICE == "cuda" else (torch.float32, torch.float16)
# many parts on short sequences
CUT = {"small_keys": 16, "large_keys": 32, "most_parts": 4}


def world(**kwargs) -> World:
    return World(**{"device": DEVICE, "schedule": CUT, **kwargs})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 16), (4, 2, 64), (7, 1, 40), (16, 1, 128), (2, 2, 256)]
)
def test_prefill_extend_decode_mixed(dtype, heads, kv_heads, dim):
    w = world(dtype=dtype, dim=dim, heads=heads, kv_heads=kv_heads)
    a, b = w.pool.open(), w.pool.open()
    w.step({a: 21, b: 3})
    children = w.fork(a, 3) + w.fork(b, 2, at=2)
    w.step(dict.fromkeys([*children, b], 1))
    w.step({children[1]: 6, children[0]: 1})


OPTIONS = [{"window": 1}, {"window": 5}, {"window": 40}, {"softcap": 2.0}]


@pytest.mark.parametrize("options", [*OPTIONS, {"window": 7, "softcap": 1.5}])
def test_window_and_softcap(options):
    w = world(options=options)
    a = w.pool.open()
    w.step({a: 50})
    children = w.fork(a, 3, at=47)
    w.step({children[0]: 1, children[1]: 12, children[2]: 1})


@given(st.data())
@settings(max_examples=3, deadline=None)
def test_irregular_trees(data):
    grow_a_tree(data.draw, prefix=40)


def grow_a_tree(draw, prefix: int, **kwargs) -> None:
    """Grow, fork and decode a random tree; every step checks itself."""
    size = draw(st.sampled_from([1, 3, 4, 16]))
    # the prefix, and what three rounds of forks and steps add
    w = world(block_size=size, num_blocks=-(-prefix // size) + 300, **kwargs)
    live = [w.pool.open()]
    w.step({live[0]: draw(st.integers(1, prefix))})
    for _ in range(draw(st.integers(1, 3))):
        parent = draw(st.sampled_from(live))
        at = draw(st.integers(0, w.pool.length(parent)))
        live += w.fork(parent, draw(st.integers(1, 3)), at)
        chosen = draw(st.lists(st.sampled_from(live), min_size=1, unique=True, max_size=6))
        w.step({seq: draw(st.sampled_from([1, 1, 2, 9])) for seq in chosen})


@pytest.mark.gpu
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_hundred_random_trees(data):
    prefix = data.draw(st.sampled_from([200, 600, 1500]))
    grow_a_tree(data.draw, prefix=prefix, dim=128, heads=14, dtype=torch.bfloat16, schedule={})


def test_more_rows_than_a_tile_and_nested_runs():
    """Five levels of forks; 11 leaves of 7 query heads over one prefix."""
    w = world(heads=7, kv_heads=1, schedule={"small_keys": 32})
    tip = w.pool.open()
    w.step({tip: 24})
    leaves = []
    for _ in range(5):
        tip, *others = w.fork(tip, 3)
        w.step({tip: 4})
        leaves += others
    w.step(dict.fromkeys([tip, *leaves], 1))


def test_order_of_branches_is_irrelevant():
    w = world()
    seqs = siblings(w, prefix=60)
    tokens = w.inputs(len(seqs))
    out = decode(w, seqs, tokens)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = decode(w, [seqs[i] for i in order], [t[order] for t in tokens])
    torch.testing.assert_close(shuffled, out[order], rtol=0, atol=0)


def test_unshared_result_is_the_same_alone_and_in_a_batch():
    w = world()
    seqs = siblings(w, prefix=50)
    tokens = w.inputs(len(seqs))
    out = decode(w, seqs, tokens, share=False)
    alone = decode(w, seqs[2:3], [t[2:3] for t in tokens], share=False)
    torch.testing.assert_close(alone, out[2:3], rtol=0, atol=0)


@pytest.mark.parametrize("cut", [{}, CUT, {**CUT, "most_parts": 1}])
def test_number_of_parts_changes_rounding_only(cut):
    w = world(schedule={})
    seqs = siblings(w, prefix=100, n=3)
    tokens = w.inputs(len(seqs))
    whole = decode(w, seqs, tokens, share=False)
    w.schedule = cut
    torch.testing.assert_close(decode(w, seqs, tokens), whole, rtol=0, atol=2e-6)


def test_nan_stays_in_its_sequence():
    w = world()
    seqs = siblings(w, prefix=50)
    tokens = w.inputs(len(seqs))
    clean = decode(w, seqs, tokens)
    tokens[1][2], tokens[0][4] = torch.nan, torch.nan
    out = decode(w, seqs, tokens)
    assert out[[2, 4]].isnan().any(-1).any(-1).all()
    rest = [0, 1, 3, 5]
    torch.testing.assert_close(out[rest], clean[rest], rtol=0, atol=0)


def test_rows_behind_the_plan_give_nothing_and_write_nothing():
    w = world()
    seqs = siblings(w, prefix=30, n=2)
    q, k, v = w.inputs(4)
    plan = w.pool.plan(seqs, [1, 1])
    positions = [w.pool.length(s) - 1 for s in seqs] + [0, 0]
    padded = DevicePlan(plan, DEVICE, positions=torch.tensor(positions, device=DEVICE), **CUT)
    caches = [cache.clone() for cache in w.caches]
    out = tree_attention(q, k, v, *caches, padded, **w.options)
    exact = decode(w, seqs, [q[:2], k[:2], v[:2]])
    torch.testing.assert_close(out[:2], exact, rtol=0, atol=0)
    assert not out[2:].any()


def test_one_schedule_serves_growing_sequences():
    """Only positions and new blocks change from step to step; the lists are renewed rarely."""
    w = world(schedule={})
    leaves = siblings(w, prefix=9, n=2)
    positions = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    room = {"table_rows": 2, "table_width": 64, "headroom": 4, "small_keys": 4}
    resident, left, renewals = None, 0, 0
    for _ in range(9):
        for leaf in leaves:
            w.pool.append(leaf, 1)
        host = w.pool.plan(leaves, [1, 1])
        positions.copy_(torch.tensor([n - 1 for n in host.lengths]))
        if resident is None:
            resident = DevicePlan(host, DEVICE, positions=positions, **room)
        elif left == 0:
            resident.renew(host)
            left, renewals = resident.growth + 1, renewals + 1
        resident.extend_tables(torch.tensor([t[-1] for t in host.tables], device=DEVICE))
        tokens = w.inputs(2)
        wide = [x.double().cpu() for x in (*tokens, *w.caches)]
        want = tree_attention_reference(*wide, host, **w.options)
        out = tree_attention(*tokens, *w.caches, resident, **w.options)
        torch.testing.assert_close(out.double().cpu(), want, rtol=0, atol=1e-5)
        left = (left or resident.growth + 1) - 1
    assert 1 <= renewals <= 3


@pytest.mark.gpu
def test_replay_of_a_graph_equals_the_launch():
    w = world(dim=128, heads=14, dtype=torch.bfloat16, schedule={"fixed_launch": True})
    seqs = siblings(w, prefix=700)
    tokens = w.inputs(len(seqs))
    plan = w.plan(dict.fromkeys(seqs, 1))
    out = torch.empty_like(tokens[0])
    eager = tree_attention(*tokens, *w.caches, plan, **w.options).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tree_attention(*tokens, *w.caches, plan, **w.options, out=out)
    for _ in range(3):
        out.fill_(torch.nan)
        graph.replay()
        torch.testing.assert_close(out, eager, rtol=0, atol=0)


def test_empty_batch():
    w = world()
    assert w.step({}).shape == (0, w.heads, w.dim)


BAD = {
    "q must be float32, bfloat16 or float16": {"q": torch.zeros(3, 4, 16, dtype=torch.float64)},
    "q and k must have 3 axes": {"q": torch.zeros(3, 64)},
    r"q must be \[3, 4, 16\]": {"q": torch.zeros(2, 4, 16)},
    "4 query heads are no multiple of 3": {"k": torch.zeros(3, 3, 16)},
    "40 query heads for 2": {"q": torch.zeros(3, 40, 16)},
    r"k must be \[3, 2, 16\]": {"k": torch.zeros(2, 2, 16)},
    "v must have q's dtype and device": {"v": torch.zeros(3, 2, 16, dtype=torch.bfloat16)},
    "v must be contiguous in its last axis": {"v": torch.zeros(3, 2, 32, device=DEVICE)[..., ::2]},
    "k_cache must be": {"k_cache": torch.zeros(4, 2, 8, 16)},
    "v_cache must be contiguous": {"v_cache": torch.zeros(4, 2, 4, 32, device=DEVICE)[..., ::2]},
    "scale must be > 0, got -1": {"scale": -1.0},
    "window and softcap must be >= 0": {"window": -1},
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
        "plan": DevicePlan(pool.plan([seq], [3]), DEVICE),
        "scale": 1.0,
        **BAD[message],
    }
    moved = {n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in inputs.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        tree_attention(**moved)
    assert not inputs["k_cache"].any() and not inputs["v_cache"].any()


@pytest.mark.parametrize("dim", [4, 12, 264])
def test_unsupported_head_dim(dim):
    pool = BlockPool(4, 4)
    seq = pool.open()
    pool.append(seq, 1)
    x, cache = torch.zeros(1, 1, dim), torch.zeros(4, 1, 4, dim)
    plan = DevicePlan(pool.plan([seq], [1]), "cpu")
    with pytest.raises(ValueError, match=f"multiple of 8 up to 256, got {dim}"):
        tree_attention(x, x, x, cache, cache.clone(), plan, scale=1.0)
