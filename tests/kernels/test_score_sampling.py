"""What `score` draws: the right law, the right members, and the same token wherever it runs."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from spark_kernels import Scores, score
from spark_kernels.score.reference import reference, unpack

pytestmark = pytest.mark.usefixtures("poison")

BIG = 151_936


def pack(allowed: Tensor) -> Tensor:
    """Return bool [B, V] as the bitmask that `score` takes."""
    rows, vocab = allowed.shape
    bits = torch.zeros(rows, -(-vocab // 32) * 32, dtype=torch.int64)
    bits[:, :vocab] = allowed
    words = (bits.view(rows, -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def row_settings(rows: int, **values: float) -> dict[str, Tensor]:
    dtype = {"top_k": torch.int32}
    return {k: torch.full((rows,), v, dtype=dtype.get(k, torch.float32)) for k, v in values.items()}


def logits_of(rows: int, vocab: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def same(a: Scores, b: Scores) -> bool:
    return all(x is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


# every way of truncating, and all at once
TRUNCATIONS = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("values", TRUNCATIONS, ids=str)
def test_law_of_the_draws(values: dict[str, float], masked: bool) -> None:
    draws, vocab = 40_000, 23
    row = logits_of(1, vocab, seed=3, spread=1.5)
    row[0, 4] = -float("inf")
    logits = row.expand(draws, vocab).contiguous()
    extra = row_settings(draws, **values)
    one = row_settings(1, **values)
    if masked:
        mask = pack(torch.arange(vocab)[None] % 3 != 1)
        extra["allowed"], one["allowed"] = mask.expand(draws, -1).contiguous(), mask
    got = score(logits, seed=torch.full((draws,), 11), position=torch.arange(draws), **extra)

    each = torch.arange(vocab)
    alone = {k: v.expand(vocab, *v.shape[1:]).contiguous() for k, v in one.items()}
    logprob, kept = reference(row.expand(vocab, -1), tokens=each, **alone)[1:3]
    seen = torch.bincount(got.tokens, minlength=vocab).double()
    # the draws themselves say what is kept, the reference how much each should get
    keep = seen > 0
    p = torch.where(keep, (logprob - kept).double().exp(), 0)
    assert p.sum().item() == pytest.approx(1, abs=1e-5), "a kept token was never drawn"
    g = 2 * (seen[keep] * (seen[keep] / (draws * p[keep])).log()).sum().item()
    assert chi2.sf(g, int(keep.sum()) - 1 or 1) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [1, 17, 2_049, 20_000])
@pytest.mark.parametrize("values", TRUNCATIONS, ids=str)
def test_draws_are_those_of_the_reference(
    values: dict[str, float], vocab: int, dtype: torch.dtype
) -> None:
    rows = 40
    logits = logits_of(rows, vocab, seed=vocab).to(dtype)
    inputs = {"seed": torch.arange(rows) * 7 - 99, "position": torch.arange(rows) ** 5}
    inputs |= row_settings(rows, **values)
    inputs["allowed"] = pack(torch.rand(rows, vocab) < 0.5)
    inputs["allowed"][:, 0] |= 1
    got, want = score(logits, **inputs), reference(logits, **inputs)
    # a draw may fall within rounding of the edge between two tokens
    agree = got.tokens == want[0]
    assert agree.sum() >= rows - 1
    for ours, theirs in zip(got[1:5], want[1:5], strict=True):
        torch.testing.assert_close(ours[agree], theirs[agree], rtol=1e-6, atol=5e-6)


def kept_tokens(logits: Tensor, draws: int = 3_000, **inputs: Tensor) -> set[int]:
    """Return the tokens that come up when one row is drawn from many times."""
    many = {k: v.expand(draws, *v.shape[1:]).contiguous() for k, v in inputs.items()}
    got = score(logits.expand(draws, -1).contiguous(), seed=torch.arange(draws), **many)
    return set(got.tokens.tolist())


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 0])
def test_top_k_takes_ties_by_lowest_index(k: int) -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.5, 1.0, 0.5, 0.0]])
    order = [1, 2, 4, 3, 5, 0, 6]
    assert kept_tokens(logits, **row_settings(1, top_k=k)) == set(order[: k or None])


@pytest.mark.parametrize(("p", "count"), [(0.1, 1), (0.24, 1), (0.26, 2), (0.51, 3), (1.0, 4)])
def test_top_p_takes_ties_by_lowest_index(p: float, count: int) -> None:
    logits = torch.full((1, 4), -2.0)
    assert kept_tokens(logits, **row_settings(1, top_p=p)) == set(range(count))


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = torch.tensor([[0.4, 0.2, 0.1, 0.3]]).log()
    assert kept_tokens(logits, **row_settings(1, min_p=0.49)) == {0, 1, 3}
    assert kept_tokens(logits, **row_settings(1, min_p=0.51)) == {0, 3}
    # at temperature 1/2 the ratios are squared
    assert kept_tokens(logits, **row_settings(1, min_p=0.51, temperature=0.5)) == {0, 3}
    assert kept_tokens(logits, **row_settings(1, min_p=0.6, temperature=0.5)) == {0}


def test_filters_are_judged_after_the_mask() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]).log()
    mask = pack(torch.tensor([[False, True, True, True, True]]))
    assert kept_tokens(logits, allowed=mask, **row_settings(1, top_k=2)) == {1, 2}
    assert kept_tokens(logits, allowed=mask, **row_settings(1, top_p=0.5)) == {1, 2}
    assert kept_tokens(logits, allowed=mask, **row_settings(1, min_p=0.6)) == {1}


@pytest.mark.parametrize(
    "values", [{"top_k": 50}, {"top_k": 3_000}, {"top_p": 0.9}, {"min_p": 0.02}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exact_membership_in_a_large_vocabulary(
    values: dict[str, float], dtype: torch.dtype
) -> None:
    # the kept mass of each row pins the size of its kept set to the token
    logits = logits_of(6, BIG).to(dtype)
    inputs = row_settings(6, **values)
    got, want = score(logits, **inputs), reference(logits, **inputs)
    torch.testing.assert_close(got.log_kept_mass, want[2], rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(0, 2**32),
    st.integers(0, 40),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_any_combination_agrees_with_the_reference(
    vocab: int, seed: int, top_k: int, top_p: float, min_p: float, heat: float
) -> None:
    # a coarse grid of logits makes ties common; greedy keeps the first of the largest
    logits = (logits_of(4, vocab, seed=seed, spread=2.0) * 4).round() / 4
    inputs = row_settings(4, top_k=top_k, top_p=top_p, min_p=min_p, temperature=heat)
    inputs |= {"seed": torch.full((4,), seed), "position": torch.arange(4)}
    inputs["allowed"] = pack(torch.rand(4, vocab, generator=torch.Generator().manual_seed(1)) < 0.7)
    got, want = score(logits, **inputs), reference(logits, **inputs)
    empty = ~unpack(inputs["allowed"], vocab).any(-1)
    assert torch.equal(got.tokens == -1, empty)
    # equal shares of ties can put top_p on the edge of a token: then one side has one token more
    edge = (got.log_kept_mass - want[2]).abs() > 5e-6
    assert edge.sum() == 0 or 0 < top_p < 1
    same_draw = ~edge & ~empty & (got.tokens == want[0])
    assert same_draw.sum() >= (~edge & ~empty).sum() - 1
    for ours, theirs in zip(got[1:5], want[1:5], strict=True):
        torch.testing.assert_close(ours[same_draw], theirs[same_draw], rtol=1e-6, atol=5e-6)


def test_greedy_is_the_first_of_the_largest() -> None:
    logits = logits_of(32, 5_000).round()
    got = score(logits, temperature=torch.zeros(32), seed=torch.arange(32))
    assert torch.equal(got.tokens, logits.argmax(-1))
    assert torch.equal(got.log_kept_mass, got.logprob)
    assert torch.equal(got.logprob, score(logits, tokens=got.tokens).logprob)


def test_given_and_sampled_rows_mix() -> None:
    logits = logits_of(4, 3_000)
    inputs = {"seed": torch.arange(4), **row_settings(4, top_p=0.7)}
    drawn = score(logits, **inputs)
    mixed = score(logits, tokens=torch.tensor([-1, 17, -1, 0]), **inputs)
    assert mixed.tokens.tolist() == [drawn.tokens[0], 17, drawn.tokens[2], 0]
    assert torch.equal(mixed.log_kept_mass, drawn.log_kept_mass)
    again = score(logits, tokens=drawn.tokens, **inputs)
    assert same(again, drawn)


MIXED = {"temperature": 0.8, "top_k": 60, "top_p": 0.97, "min_p": 0.001}


@pytest.mark.parametrize("values", [{}, {"temperature": 0.8}, MIXED], ids=["plain", "hot", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_on_every_instruction_set(
    values: dict[str, float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, vocab = 24, 10_007
    logits = logits_of(rows, vocab).to(dtype)
    inputs = {"seed": torch.arange(rows), **row_settings(rows, **values)}
    inputs["allowed"] = pack(torch.rand(rows, vocab) < 0.9)
    results = []
    for isa in ("plain", "avx2", "avx512"):
        monkeypatch.setenv("SPARK_ISA", isa)
        results.append(score(logits, tempered_entropy=True, **inputs))
    assert same(results[0], results[1]) and same(results[1], results[2])


@pytest.mark.parametrize("values", [{}, MIXED], ids=["plain", "mixed"])
def test_the_same_bits_alone_in_any_batch_on_any_threads(values: dict[str, float]) -> None:
    rows, vocab = 9, 40_000
    logits = logits_of(rows, vocab)
    inputs = {"seed": torch.arange(rows) + 5, "position": torch.arange(rows) * 3}
    inputs |= row_settings(rows, **values)
    whole = score(logits, **inputs)
    threads = torch.get_num_threads()
    for count, size in itertools.product((1, 2, 3), (1, 2, 4, rows)):
        torch.set_num_threads(count)
        parts = [
            score(logits[i : i + size], **{k: v[i : i + size] for k, v in inputs.items()})
            for i in range(0, rows, size)
        ]
        torch.set_num_threads(threads)
        joined = [None if v[0] is None else torch.cat(v) for v in zip(*parts, strict=True)]
        assert same(Scores(*joined), whole), f"{count} threads, {size} rows"


def test_seed_and_position_fix_the_draw() -> None:
    logits = logits_of(1, 1_000, spread=1.0).expand(400, -1).contiguous()
    seed, position = torch.arange(400) // 20, torch.arange(400) % 20
    a = score(logits, seed=seed, position=position).tokens
    assert torch.equal(a, score(logits, seed=seed, position=position).tokens)
    assert len(a.unique()) > 150
    assert not torch.equal(a, score(logits, seed=seed + 2**40, position=position).tokens)
    assert not torch.equal(a, score(logits, seed=seed, position=position + 2**33).tokens)
    torch.manual_seed(5)
    b = score(logits).tokens
    torch.manual_seed(5)
    assert torch.equal(b, score(logits).tokens) and not torch.equal(b, score(logits).tokens)
