"""The CUDA kernel of `kv_fork`, run on the CPU thread by thread, against the reference."""

from __future__ import annotations

import emulated
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import spec
from spark_kernels.kv_fork.reference import kv_fork_reference

OP = spec.load("kv_fork")


def caches(layout: str, *, blocks: int = 12, heads: int = 3, size: int = 8, token: int = 16):
    """Two buffers of random bytes, so that one touched by mistake shows."""
    shape = (blocks, heads, size, token) if layout == "HND" else (blocks, size, heads, token)
    return [torch.randint(0, 256, shape).to(torch.uint8) for _ in range(2)]


def check(buffers: list[torch.Tensor], pairs: list, layout: str = "HND") -> None:
    wanted = [b.clone() for b in buffers]
    table = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 3)
    emulated.kv_fork(buffers, table, layout)
    kv_fork_reference(wanted, table, layout)
    assert all(torch.equal(a, b) for a, b in zip(buffers, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", OP.cases, ids=str)
def test_cases_of_the_spec(sizes: dict[str, int], dtype: torch.dtype) -> None:
    inputs, same = (OP.init(sizes, dtype, torch.Generator().manual_seed(1)) for _ in range(2))
    emulated.kv_fork(**inputs)
    for ours, theirs in zip(inputs["buffers"], OP.reference(**same), strict=True):
        assert torch.equal(ours, theirs)


# bytes of a token: moved 16, 4 and 1 at a time
@pytest.mark.parametrize("token", [16, 48, 4, 20, 1, 7])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_every_width(layout: str, token: int) -> None:
    pairs = [(3, 7, 5), (3, 0, 8), (5, 11, 1), (3, 9, 0)]
    check(caches(layout, token=token), pairs, layout)


def test_a_buffer_that_starts_anywhere() -> None:
    memory = torch.randint(0, 256, (12 * 3 * 8 * 16 + 1,)).to(torch.uint8)
    check([memory[1:].view(12, 3, 8, 16)], [(0, 11, 6), (0, 4, 3)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_forks(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["HND", "NHD"]))
    blocks = data.draw(st.permutations(range(12)))
    sources = blocks[: data.draw(st.integers(1, 4))]
    others = blocks[len(sources) : data.draw(st.integers(len(sources), 12))]
    one, used = st.sampled_from(sources), st.integers(0, 8)
    check(caches(layout), [(data.draw(one), d, data.draw(used)) for d in others], layout)


def test_more_children_than_one_launch_takes() -> None:
    pairs = [(i % 3, 3 + i, 1 + i % 2) for i in range(500)]
    check(caches("HND", blocks=503, heads=1, size=2), pairs)


def test_a_block_larger_than_a_grid_step() -> None:
    check(caches("NHD", heads=64, size=64, token=16), [(0, 5, 63), (0, 6, 1), (7, 2, 64)], "NHD")


def test_offsets_beyond_2_gib() -> None:
    # only the pages that are written exist
    buffer = torch.empty(2_200_000, 1, 2, 512, dtype=torch.uint8)
    buffer[0], buffer[-1] = 9, 1
    emulated.kv_fork([buffer], torch.tensor([[0, 2_199_999, 1]]))
    assert (buffer[-1, :, 0] == 9).all() and (buffer[-1, :, 1] == 1).all()
