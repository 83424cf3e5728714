"""What `score` accepts, refuses and reuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spark_kernels import Scores, _load, score
from spark_kernels.score import op

pytestmark = pytest.mark.usefixtures("poison")

ROWS, VOCAB = 3, 70


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logits": torch.zeros(VOCAB)}, r"logits has shape \[70\]: pass \[B, V\]"),
    ({"logits": torch.zeros(ROWS, 0)}, "V > 0"),
    ({"logits": torch.zeros(ROWS, VOCAB, dtype=torch.float64)}, "logits is torch.float64"),
    ({"logits": torch.zeros(1, 2**20)}, "logits has V = 1048576: at most 1048575"),
    ({"logits": torch.zeros(VOCAB, ROWS).t()}, r"stride 3 along V: call \.contiguous"),
    ({"temperature": floats(1, -0.5, 1)}, r"temperature\[1\] = -0.5: use 0 for greedy"),
    ({"temperature": floats(1, 1, float("nan"))}, r"temperature\[2\] = nan"),
    ({"temperature": floats(float("inf"), 1, 1)}, r"temperature\[0\] = inf"),
    ({"temperature": floats(1, 1)}, r"temperature is torch.float32 \[2\]: pass .* \[3\]"),
    ({"temperature": ints(1, 1, 1)}, "temperature is torch.int32"),
    ({"top_k": ints(1, -2, 0)}, r"top_k\[1\] = -2: use 0 to switch it off"),
    ({"top_p": floats(0.5, 0.0, 1)}, r"top_p\[1\] = 0: use a value in \(0, 1\]"),
    ({"top_p": floats(0.5, 1, 1.5)}, r"top_p\[2\] = 1.5"),
    ({"min_p": floats(0.5, 1, 1.5)}, r"min_p\[2\] = 1.5"),
    ({"allowed": torch.zeros(ROWS, 2, dtype=torch.int32)}, r"allowed is .*\[3, 2\].*\[3, 3\]"),
    ({"seed": ints(1, 2, 3)}, "seed is torch.int32"),
    ({"position": torch.zeros(6, dtype=torch.int64)[::2]}, r"position has strides \(2,\)"),
    ({"tokens": torch.tensor([0, VOCAB, 0])}, r"tokens\[1\] = 70: use -1 .* below V = 70"),
    ({"tokens": torch.tensor([0, -2, 0])}, r"tokens\[1\] = -2"),
    ({"out": Scores(*torch.zeros(5, 2))}, r"out.tokens is torch.float32 \[2\]"),
]


@pytest.fixture(params=["compiled", "reference"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the compiled op and on what stands in for it."""
    if request.param == "reference":
        monkeypatch.setattr(op, "COMPILED", frozenset())
    return request.param


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_names_the_field_and_the_remedy(
    either: str, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(**({"logits": torch.zeros(ROWS, VOCAB)} | wrong))


def test_a_refused_call_leaves_the_outputs_alone() -> None:
    out = score(torch.zeros(ROWS, VOCAB))
    before = [None if v is None else v.clone() for v in out]
    with pytest.raises(ValueError, match="top_p"):
        score(torch.ones(ROWS, VOCAB), top_p=floats(0.5, 0.5, 7), out=out)
    assert all(a is None or torch.equal(a, b) for a, b in zip(out, before, strict=True))


@pytest.mark.parametrize("tempered", [False, True])
def test_out_is_reused(either: str, tempered: bool) -> None:
    a, b = torch.randn(2, ROWS, VOCAB)
    seed = torch.arange(ROWS)
    out = score(a, seed=seed, tempered_entropy=tempered)
    again = score(b, seed=seed, tempered_entropy=tempered, out=out)
    fresh = score(b, seed=seed, tempered_entropy=tempered)
    assert again is out
    assert all(x is None or torch.equal(x, y) for x, y in zip(again, fresh, strict=True))


def test_empty_batch(either: str) -> None:
    got = score(torch.zeros(0, VOCAB), top_p=floats(), tempered_entropy=True)
    assert all(value.shape == (0,) for value in got)


def test_without_the_library_the_reference_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, seed = torch.randn(ROWS, VOCAB), torch.arange(ROWS)
    compiled = score(logits, seed=seed)
    called: list[Callable] = []
    reference = op.reference
    monkeypatch.setattr(op, "COMPILED", frozenset())
    monkeypatch.setattr(_load, "has", lambda *_: False)
    monkeypatch.setattr(op, "reference", lambda *args: called.append(args) or reference(*args))
    for x, y in zip(score(logits, seed=seed), compiled, strict=True):
        assert x is None or torch.allclose(x, y, atol=5e-6)
    assert called
    report = _load.active()["score"]
    assert report["implementation"] == "torch reference" and "rebuild" in report["why"]
