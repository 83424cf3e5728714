"""The CUDA kernels of `score`, run on the CPU thread by thread: the bits of the CPU's kernel."""

from __future__ import annotations

import emulated
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spark_kernels import Scores, score, spec

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF = float("inf")
OP = spec.load("score")
NAMES = ("temperature", "top_k", "top_p", "min_p")
# every way of truncating, and all at once
SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_k": 700},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.95, "min_p": 0.01},
]


def same(a: Scores, b: Scores) -> bool:
    """Whether the bits are the same, NaN included."""
    return all(
        torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True)
    )


def on_both(logits: Tensor, **inputs: Tensor) -> Scores:
    """Assert that both kernels say the same, and return it."""
    ours, cpu = emulated.score(logits, **inputs), score(logits, tempered_entropy=True, **inputs)
    for name, a, b in zip(Scores._fields, ours, cpu, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), (name, a, b)
    return ours


def inputs_of(rows: int, vocab: int, values: dict[str, float], masked: bool = False) -> dict:
    dtype = {"top_k": torch.int32}
    inputs = {
        k: torch.full((rows,), v, dtype=dtype.get(k, torch.float32)) for k, v in values.items()
    }
    inputs |= {"seed": torch.arange(rows) * 7 - 9, "position": torch.arange(rows) ** 5}
    if masked:
        words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32))).to(torch.int32)
        words[:, 0] |= 1
        inputs["allowed"] = words
    return inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", OP.cases, ids=str)
def test_cases_of_the_spec(sizes: dict[str, int], dtype: torch.dtype) -> None:
    inputs = OP.init(sizes, dtype, torch.Generator().manual_seed(1))
    if sizes["B"] > 0:
        on_both(**{k: v for k, v in inputs.items() if k != "tempered_entropy"})
    got, want = emulated.score(**inputs), OP.reference(**inputs)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_every_way_of_sampling(values: dict[str, float], dtype: torch.dtype, masked: bool) -> None:
    for vocab in (1, 33, 6_001):
        logits = (3 * torch.randn(3, vocab)).to(dtype)
        on_both(logits, **inputs_of(3, vocab, values, masked))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_real_vocabulary(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(1, 151_936)).to(dtype)
    on_both(logits, **inputs_of(1, 151_936, SETTINGS[-1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_rows_that_start_anywhere(dtype: torch.dtype, offset: int) -> None:
    wide = torch.full((3, 4_131), 60.0, dtype=dtype)
    view = wide[:, offset : offset + 4_099]
    view[:] = 3 * torch.randn(3, 4_099)
    inputs = inputs_of(3, 4_099, SETTINGS[-1])
    assert same(on_both(view, **inputs), emulated.score(view.contiguous(), **inputs))


def test_ties_in_the_order_of_their_index() -> None:
    logits = (torch.randn(6, 9_000) * 2).round()
    for values in ({"top_k": 5_000}, {"top_p": 0.5}, {"top_k": 300, "top_p": 0.9}):
        on_both(logits, **inputs_of(6, 9_000, values, masked=True))
    on_both(torch.full((2, 5_000), -7.0), **inputs_of(2, 5_000, {"top_p": 0.3}))
    zeros = torch.tensor([[0.0, -0.0, 1.0, -0.0] * 300])
    on_both(zeros, **inputs_of(1, 1_200, {"top_k": 500}))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5_000),
    st.integers(0, 2**32),
    st.integers(0, 40),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.sampled_from(DTYPES),
)
def test_any_combination(
    vocab: int,
    seed: int,
    top_k: int,
    top_p: float,
    min_p: float,
    heat: float,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # a coarse grid makes ties common
    logits = ((2 * torch.randn(2, vocab, generator=generator) * 4).round() / 4).to(dtype)
    values = dict(zip(NAMES, (heat, top_k, top_p, min_p), strict=True))
    on_both(logits, **inputs_of(2, vocab, values))


def test_extremes() -> None:
    rows = 3 * torch.randn(8, 4_500)
    rows[0, 2_500] = float("nan")
    rows[1, 4_499] = INF
    rows[2] = -INF
    rows[3, :4_096] = -INF
    rows[4] *= 1e4
    rows[5] = -1e30
    rows[6, 1:] = -INF
    rows[7] = 1.5e38 * torch.sign(rows[7])
    for values in ({}, {"top_p": 0.9}, {"temperature": 0.0}, {"temperature": 300.0}):
        got = on_both(rows, **inputs_of(8, 4_500, values))
        assert got.tokens[:3].tolist() == [-1, -1, -1] and (got.tokens[3:] >= 0).all()


def test_given_tokens() -> None:
    logits = 3 * torch.randn(4, 3_000)
    inputs = inputs_of(4, 3_000, {"top_p": 0.7})
    got = on_both(logits, tokens=torch.tensor([-1, 17, -1, 0]), **inputs)
    assert got.tokens[1] == 17 and got.tokens[3] == 0


def test_a_value_out_of_range_fails_its_row_alone() -> None:
    logits, seed = torch.randn(3, 100), torch.arange(3)
    clean = emulated.score(logits, seed=seed)
    for name, value in {"temperature": -1.0, "top_k": -1, "top_p": 0.0, "min_p": 2.0}.items():
        good = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}[name]
        dtype = torch.int32 if name == "top_k" else torch.float32
        got = emulated.score(
            logits, seed=seed, **{name: torch.tensor([good, value, good], dtype=dtype)}
        )
        assert got.tokens[1] == -1 and all(values[1].isnan() for values in got[1:])
        assert all(torch.equal(x[::2], y[::2]) for x, y in zip(got, clean, strict=True))


@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_the_order_of_the_threads_does_not_matter(
    values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # between two barriers the threads of a block run in any order
    logits = (torch.randn(2, 9_000) * 8).round() / 4
    inputs = inputs_of(2, 9_000, values, masked=True)
    first = emulated.score(logits, **inputs)
    for seed in range(1, 5):
        monkeypatch.setenv("EMULATOR_SEED", str(seed))
        assert same(emulated.score(logits, **inputs), first)


def test_a_row_alone_and_in_a_batch() -> None:
    logits = 3 * torch.randn(5, 7_000)
    inputs = inputs_of(5, 7_000, SETTINGS[-1])
    whole = emulated.score(logits, **inputs)
    for i in range(5):
        alone = emulated.score(logits[i : i + 1], **{k: v[i : i + 1] for k, v in inputs.items()})
        assert same(alone, Scores(*(values[i : i + 1] for values in whole)))
