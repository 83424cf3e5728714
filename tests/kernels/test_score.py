"""Properties of `score`'s log-probability, entropy, varentropy and kept mass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spark_kernels import Scores, score
from spark_kernels.score.reference import reference

pytestmark = pytest.mark.usefixtures("poison")

BIG = 151_936
VOCABULARIES = [1, 7, 1023, 1024, 1025, 2047, 2049, 32_000, BIG, 152_064]
ISAS = ["plain", "avx2", "avx512"]
INF = float("inf")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on each instruction set; a machine that lacks one repeats its best."""
    monkeypatch.setenv("SPARK_ISA", request.param)
    return request.param


def logits_of(rows: int, vocab: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def assert_scores_close(got: Scores, want: tuple[Tensor | None, ...]) -> None:
    """Within 5e-6 of the fp64 reference; large values within their own float32 rounding."""
    assert torch.equal(got.tokens, want[0])
    for name, ours, theirs in zip(Scores._fields[1:], got[1:], want[1:], strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert not ours.isnan().any(), name
            worst = (ours.double() - theirs.double()).abs() - 2.4e-7 * theirs.double().abs()
            finite = theirs.isfinite()
            assert torch.equal(ours[~finite], theirs[~finite]), name
            assert finite.sum() == 0 or worst[finite].max() <= 5e-6, f"{name}: {worst.max()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_every_vocabulary_size(vocab: int, dtype: torch.dtype) -> None:
    logits = logits_of(3, vocab).to(dtype)
    heat = torch.tensor([1.0, 0.7, 1.6])
    tokens = torch.tensor([0, vocab // 2, vocab - 1])
    settings = {"temperature": heat, "tokens": tokens, "tempered_entropy": True}
    assert_scores_close(score(logits, **settings), reference(logits, **settings))


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 10.0, 100.0])
def test_every_spread(isa: str, spread: float) -> None:
    logits = logits_of(2, 50_257, spread)
    tokens = logits.argmax(-1)
    assert_scores_close(score(logits, tokens=tokens), reference(logits, tokens=tokens))


def test_precision_on_a_peaked_row() -> None:
    # 99 % of the vocabulary is -inf, as under a constrained decoder
    logits = logits_of(8, BIG)
    logits[:, torch.rand(BIG) < 0.99] = -INF
    tokens = logits.argmax(-1)
    heat = torch.full((8,), 0.7)
    settings = {"temperature": heat, "tokens": tokens, "tempered_entropy": True}
    assert_scores_close(score(logits, **settings), reference(logits, **settings))


def test_one_value_repeated_does_not_drift() -> None:
    # equal terms make rounding errors add up instead of cancelling
    logits = torch.full((4, BIG), -7.3)
    logits[:, 5] = torch.tensor([0.0, 3.0, -7.0, 20.0])
    tokens = torch.tensor([5, 6, 7, 5])
    assert_scores_close(score(logits, tokens=tokens), reference(logits, tokens=tokens))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_signs_and_bounds(scale: float) -> None:
    logits = logits_of(16, 3_001, scale)
    heat = torch.linspace(0.1, 3, 16)
    got = score(logits, temperature=heat, tempered_entropy=True)
    assert (got.logprob <= 0).all() and (got.log_kept_mass == 0).all()
    for entropy in (got.entropy, got.entropy_tempered):
        assert (entropy >= 0).all() and (entropy.double() <= math.log(3_001) + 1e-6).all()
    assert (got.varentropy >= 0).all() and (got.varentropy_tempered >= 0).all()


@pytest.mark.parametrize("shift", [-1e4, -64.0, 256.0, 1e4])
def test_a_shift_changes_nothing(shift: float) -> None:
    # multiples of 2**-8 below 2**4 stay exact after the shift
    logits = (logits_of(4, 5_000) * 256).round() / 256
    a, b = (
        score(x, tokens=torch.arange(4), seed=torch.arange(4)) for x in (logits, logits + shift)
    )
    for name, x, y in zip(Scores._fields, a, b, strict=True):
        assert x is None or torch.equal(x, y), name


def test_temperature_is_a_scaling_of_the_logits() -> None:
    logits, heat = logits_of(6, 4_000), torch.tensor([0.25, 0.5, 2.0, 4.0, 0.125, 1.0])
    tokens = torch.arange(6)
    hot = score(logits, temperature=heat, tokens=tokens, tempered_entropy=True)
    scaled = score(logits / heat[:, None], tokens=tokens)
    torch.testing.assert_close(hot.logprob, scaled.logprob, rtol=1e-6, atol=5e-6)
    torch.testing.assert_close(hot.entropy_tempered, scaled.entropy, rtol=0, atol=5e-6)
    torch.testing.assert_close(hot.varentropy_tempered, scaled.varentropy, rtol=1e-6, atol=5e-6)
    cold = score(logits, tokens=tokens)
    assert torch.equal(hot.entropy, cold.entropy) and torch.equal(hot.varentropy, cold.varentropy)


def test_permutation_moves_only_the_token() -> None:
    logits, order = logits_of(5, 9_000), torch.randperm(9_000)
    tokens = torch.arange(5)
    a = score(logits, tokens=order[tokens])
    b = score(logits[:, order].contiguous(), tokens=tokens)
    for x, y in zip(a[1:5], b[1:5], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=5e-6)


@pytest.mark.parametrize("vocab", [1, 2, 1000, BIG])
def test_uniform_and_one_hot(isa: str, vocab: int) -> None:
    flat = score(torch.full((1, vocab), 3.25))
    assert flat.entropy.item() == pytest.approx(math.log(vocab), abs=1e-6)
    assert flat.varentropy.item() == pytest.approx(0, abs=1e-30)
    assert flat.logprob.item() == pytest.approx(-math.log(vocab), abs=1e-6)
    hot = torch.full((1, vocab), -INF)
    hot[0, vocab - 1] = -5.0
    sure = score(hot)
    assert sure.tokens.item() == vocab - 1
    assert (sure.logprob.item(), sure.entropy.item(), sure.varentropy.item()) == pytest.approx(
        (0, 0, 0), abs=1e-30
    )


def test_blocks_of_minus_infinity() -> None:
    logits = logits_of(3, 10_000)
    logits[0, :8_192] = -INF
    logits[1, 4_096:] = -INF
    logits[2, 2_000:9_999] = -INF
    tokens = torch.tensor([9_000, 7, 9_999])
    assert_scores_close(score(logits, tokens=tokens), reference(logits, tokens=tokens))
    forbidden = score(logits, tokens=torch.tensor([0, 5_000, 3_000]))
    assert (forbidden.logprob == -INF).all() and (forbidden.entropy > 0).all()


@pytest.mark.parametrize("magnitude", [1e4, 1.5e38])
def test_extreme_logits(magnitude: float) -> None:
    logits = torch.tensor([[magnitude, -magnitude, 0.0], [-magnitude, -magnitude, -magnitude]])
    got = score(logits, tokens=torch.tensor([0, 1]))
    assert got.logprob.tolist() == pytest.approx([0, -math.log(3)], abs=1e-6)
    assert got.entropy.tolist() == pytest.approx([0, math.log(3)], abs=1e-6)
    unlikely = score(logits[:, :2].contiguous(), tokens=torch.tensor([1, 0]))
    assert unlikely.logprob[0].item() == pytest.approx(-2 * magnitude, rel=1e-6)


def test_columns_past_the_vocabulary_do_not_leak() -> None:
    wide = torch.full((4, 1_100), 50.0)
    wide[:, :1_003] = logits_of(4, 1_003)
    view = wide[:, :1_003]
    alone = view.contiguous()
    for x, y in zip(
        score(view, seed=torch.arange(4)), score(alone, seed=torch.arange(4)), strict=True
    ):
        assert x is None or torch.equal(x, y)


@pytest.mark.parametrize("broken", [float("nan"), INF], ids=["nan", "inf"])
@pytest.mark.parametrize("where", [0, 2_500, 4_999])
def test_an_invalid_row_fails_alone(isa: str, broken: float, where: int) -> None:
    logits = logits_of(3, 5_000)
    clean = score(logits, seed=torch.arange(3), tempered_entropy=True)
    logits[1, where] = broken
    got = score(logits, seed=torch.arange(3), tempered_entropy=True)
    assert got.tokens[1] == -1 and all(values[1].isnan() for values in got[1:])
    for x, y in zip(got, clean, strict=True):
        assert torch.equal(x[::2], y[::2])


def test_rows_with_nothing_to_draw_from() -> None:
    logits = logits_of(3, 100)
    logits[0] = -INF
    logits[1, 40] = float("nan")
    logits[1, :40] = logits[1, 41:] = -INF
    allowed = torch.full((3, 4), -1, dtype=torch.int32)
    allowed[2] = 0
    got = score(logits, allowed=allowed)
    assert got.tokens.tolist() == [-1, -1, -1] and got.entropy.isnan().all()
