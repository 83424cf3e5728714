"""Every op on a CUDA device: against fp64, against the CPU's bits, in graphs, without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from spark_kernels import Scores, kv_fork, score, spec
from spark_kernels.kv_fork.reference import kv_fork_reference
from spark_kernels.score import op as score_op

# what runs here runs on the CPU too, so that a slip shows before the first GPU does
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.parametrize("device", DEVICES)]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BIG = 151_936
# host tensors of an op: the kernel takes their values as parameters
ON_HOST = {"pairs"}
CASES = [
    pytest.param(op, sizes, dtype, id=f"{op}-{'x'.join(map(str, sizes.values()))}-{dtype}"[:60])
    for op in spec.names()
    for sizes in spec.load(op).cases
    for dtype in spec.load(op).tolerance
]
SETTINGS: list[dict[str, float]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 0.0},
    {"top_k": 50},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_k": 900, "top_p": 0.95, "min_p": 0.001},
]


def moved(value: Any, device: str, name: str = "") -> Any:
    """Return inputs on `device`; plans, numbers and host tensors stay."""
    if isinstance(value, Tensor) and name not in ON_HOST:
        return value.to(device)
    if isinstance(value, list):
        return [moved(one, device, name) for one in value]
    return value


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Fail on a call that makes the host wait for the device."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("op", "sizes", "dtype"), CASES)
def test_op_agrees_with_its_reference(
    device: str, op: str, sizes: dict[str, int], dtype: torch.dtype
) -> None:
    declared = spec.load(op)
    tolerance = declared.tolerance[dtype]
    inputs, same = (declared.init(sizes, dtype, torch.Generator().manual_seed(1)) for _ in range(2))
    got = declared.call(**{name: moved(value, device, name) for name, value in inputs.items()})
    # an output may be a list: `kv_fork` has one tensor a buffer
    for ours, theirs in zip(got, declared.reference(**same), strict=True):
        assert ours.device.type == device
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


def row_settings(rows: int, values: dict[str, float]) -> dict[str, Tensor]:
    """Return settings for every row, with seeds and positions."""
    dtype = {"top_k": torch.int32}
    inputs = {
        k: torch.full((rows,), v, dtype=dtype.get(k, torch.float32)) for k, v in values.items()
    }
    return {**inputs, "seed": torch.arange(rows) * 7 - 9, "position": torch.arange(rows) ** 3}


def on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def same(a: Scores, b: Scores) -> bool:
    return all(x is y or torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("vocab", [7, 2_049, 50_257, BIG])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_score_draws_the_token_of_the_cpu(
    device: str, values: dict[str, float], dtype: torch.dtype, vocab: int
) -> None:
    rows = 3 if device == "cpu" else 16
    logits = (3 * torch.randn(rows, vocab)).to(dtype)
    inputs = row_settings(rows, values)
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32))).to(torch.int32)
    words[:, 0] |= 1
    for more in ({}, {"allowed": words}):
        cpu = score(logits, tempered_entropy=True, **inputs, **more)
        found = score(logits.to(device), tempered_entropy=True, **on(device, {**inputs, **more}))
        assert torch.equal(found.tokens.cpu(), cpu.tokens)
        for name, x, y in zip(Scores._fields[1:], found[1:], cpu[1:], strict=True):
            # the last bit may differ where the device's logarithm does
            torch.testing.assert_close(x.cpu(), y, rtol=2e-7, atol=1e-9, msg=f"score.{name}")


def test_score_of_rows_that_start_anywhere(device: str) -> None:
    for dtype in DTYPES:
        wide = torch.full((4, 4_131), 60.0, dtype=dtype, device=device)
        for offset in (0, 1, 3, 8):
            view = wide[:, offset : offset + 4_099]
            view[:] = 3 * torch.randn(4, 4_099, device=device)
            inputs = on(device, row_settings(4, SETTINGS[-1]))
            assert same(score(view, **inputs), score(view.contiguous(), **inputs))


@pytest.mark.parametrize("values", [{}, SETTINGS[-1]], ids=["plain", "mixed"])
def test_score_of_a_row_does_not_depend_on_its_batch(device: str, values: dict[str, float]) -> None:
    rows, vocab = (9, 40_000) if device == "cpu" else (257, BIG)
    logits = 3 * torch.randn(rows, vocab, device=device)
    inputs = on(device, row_settings(rows, values))
    whole = score(logits, **inputs)
    for size in (1, 2, rows - 1):
        part = score(logits[:size], **{k: v[:size] for k, v in inputs.items()})
        assert same(part, Scores(*(x if x is None else x[:size] for x in whole)))


def test_score_never_waits(device: str) -> None:
    logits = torch.randn(5, 9_001, device=device)
    inputs = on(device, row_settings(5, SETTINGS[-1]))
    out = score_op._allocate(logits, True)
    with no_waiting(device):
        assert score(logits, tempered_entropy=True, out=out, **inputs) is out


def test_score_in_a_graph(device: str) -> None:
    logits = torch.randn(5, 9_001, device=device)
    inputs = on(device, row_settings(5, SETTINGS[-1]))
    out = score_op._allocate(logits, False)
    eager = score(logits, **inputs)
    if device == "cpu":
        assert same(score(logits, out=out, **inputs), eager)
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        score(logits, out=out, **inputs)
    for value in out[:5]:
        value.fill_(-7)
    graph.replay()
    assert same(out, eager)
    # new logits and positions in the same place
    logits.copy_(torch.randn_like(logits))
    inputs["position"].add_(1)
    graph.replay()
    assert same(out, score(logits, **inputs))


@pytest.mark.gpu
def test_score_of_a_value_out_of_range_fails_its_row(device: str) -> None:
    if device == "cpu":
        pytest.skip("the CPU raises instead")
    heat = torch.tensor([1.0, -1.0, 1.0], device=device)
    got = score(torch.randn(3, 100, device=device), temperature=heat)
    assert got.tokens[1] == -1 and got.tokens[0] >= 0 and got.entropy[1].isnan()


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("dim", [128, 24, 3])
def test_kv_fork_is_bitwise(device: str, layout: str, dim: int) -> None:
    shape = (300, 3, 8, dim) if layout == "HND" else (300, 8, 3, dim)
    for dtype in (torch.bfloat16, torch.uint8):
        buffers = [torch.randint(0, 120, shape).to(dtype) for _ in range(6)]
        wanted = [b.clone() for b in buffers]
        pairs = [(i % 5, 5 + i, i % 9) for i in range(290)]
        there = [b.to(device) for b in buffers]
        kv_fork(there, pairs, layout)
        kv_fork_reference(wanted, torch.tensor(pairs), layout)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(there, wanted, strict=True))


def test_kv_fork_never_waits(device: str) -> None:
    buffers = [torch.zeros(9, 2, 16, 64, device=device) for _ in range(4)]
    buffers[0][0] = 1
    kv_fork(buffers, [(0, 1, 5)])
    # the first call of a pool has written the addresses to the device
    with no_waiting(device):
        kv_fork(buffers, [(0, 2, 7), (0, 3, 1)])
    assert buffers[0][2, :, :7].eq(1).all() and buffers[0][2, :, 7:].eq(0).all()


def test_kv_fork_beyond_2_gib(device: str) -> None:
    buffer = torch.zeros(2_200_000, 1, 2, 512, dtype=torch.uint8, device=device)
    buffer[0] = 9
    kv_fork([buffer], [(0, 2_199_999, 1)])
    assert (buffer[-1, :, 0] == 9).all() and (buffer[-1, :, 1] == 0).all()
