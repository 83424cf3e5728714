"""kv_fork: bitwise copies of the used tokens, nothing else touched, collisions refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import kv_fork
from spark_kernels.kv_fork.reference import kv_fork_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def caches(layout: str, dtype=torch.float32, n=12, heads=3, size=8, dim=24, layers=2):
    """Buffers of random bits, so that NaN payloads and both zeros are among the values."""
    shape = (n, heads, size, dim) if layout == "HND" else (n, size, heads, dim)
    width = dtype.itemsize
    bits = [torch.randint(0, 256, (*shape[:3], dim * width)).to(torch.uint8) for _ in range(layers)]
    return [b.view(dtype) for b in bits]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("used", [0, 1, 5, 8])
def test_copies_the_used_tokens_and_nothing_else(layout, dtype, used):
    buffers = caches(layout, dtype)
    before = [b.clone() for b in buffers]
    pairs = [(3, 7, used), (3, 0, used), (5, 11, max(used - 1, 0)), (3, 9, used)]
    kv_fork(buffers, torch.tensor(pairs), layout)
    for buffer, old in zip(buffers, before, strict=True):
        wanted = old.clone()
        tokens, old_tokens = (t if layout == "NHD" else t.transpose(1, 2) for t in (wanted, old))
        for source, destination, n in pairs:
            tokens[destination, :n] = old_tokens[source, :n]
        assert same_bits(buffer, wanted)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_forks_agree_with_the_reference(data):
    layout = data.draw(st.sampled_from(["HND", "NHD"]))
    blocks = data.draw(st.permutations(range(12)))
    sources = blocks[: data.draw(st.integers(1, 4))]
    destinations = blocks[len(sources) : data.draw(st.integers(len(sources), 12))]
    pairs = [
        (data.draw(st.sampled_from(sources)), d, data.draw(st.integers(0, 8))) for d in destinations
    ]
    buffers = caches(layout)
    wanted = [b.clone() for b in buffers]
    kv_fork(buffers, pairs, layout)
    kv_fork_reference(wanted, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3), layout)
    assert all(same_bits(a, b) for a, b in zip(buffers, wanted, strict=True))


@pytest.mark.parametrize("pairs", [[], torch.empty(0, 3, dtype=torch.int64)])
def test_no_pairs(pairs):
    buffers = caches("HND")
    before = [b.clone() for b in buffers]
    kv_fork(buffers, pairs)
    assert all(same_bits(a, b) for a, b in zip(buffers, before, strict=True))


def test_bytes_around_a_view_stay():
    whole = torch.full((14, 3, 8, 24), 7.0)
    kv_fork([whole[1:13]], [(0, 11, 8)])
    assert (whole == 7.0).all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1, 2, 3), (4, 2, 3)], "same destination"),
        ([(1, 2, 3), (2, 5, 3)], "block 2 is both"),
        ([(4, 4, 1)], "block 4 is both"),
        ([(0, 12, 1)], r"blocks must be in \[0, 12\)"),
        ([(-1, 2, 1)], r"blocks must be in \[0, 12\)"),
        ([(0, 2, 9)], r"used tokens must be in \[0, 8\], got \[\(0, 2, 9\)\]"),
        ([(0, 2, -1)], "used tokens"),
        ([(0, 2), (3, 4, 5, 6)], r"int64 \[n, 3\]"),
        ([(0, 2)], r"int64 \[n, 3\]"),
        ([(0, 2, 1.5)], r"int64 \[n, 3\]"),
    ],
)
def test_bad_pairs_change_nothing(pairs, message):
    buffers = caches("HND")
    before = [b.clone() for b in buffers]
    with pytest.raises(ValueError, match=message):
        kv_fork(buffers, pairs)
    assert all(same_bits(a, b) for a, b in zip(buffers, before, strict=True))


def test_bad_buffers():
    with pytest.raises(ValueError, match="layout must be 'HND' or 'NHD', got 'hnd'"):
        kv_fork(caches("HND"), [(0, 1, 1)], "hnd")
    first, second = caches("HND")
    for wrong in (second[:11], second.transpose(1, 2), second.bfloat16(), second[0]):
        with pytest.raises(ValueError, match="contiguous, of one shape"):
            kv_fork([first, wrong], [(0, 1, 1)])


def test_offsets_beyond_2_gib():
    # only the pages that are written exist
    buffer = torch.empty(2_200_000, 1, 2, 512, dtype=torch.uint8)
    buffer[0] = 9
    buffer[-1] = 1
    kv_fork([buffer], [(0, 2_199_999, 1)])
    assert (buffer[-1, :, 0] == 9).all() and (buffer[-1, :, 1] == 1).all()
