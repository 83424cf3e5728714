"""The benchmark tools: wrong results are not timed, results are files, tables come from them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, headlines, results
from benchmarks.harness import Case, Timing, compare, interleave
from benchmarks.own_time import OwnTime


def case(**changes: object) -> Case:
    values = {
        "op": "copy",
        "case": {"n": 8, "dtype": "float32"},
        "metric": "time",
        "unit": "ms",
        "ours": Timing(2.0, 1.0, 3.0, 5),
        "baselines": {"torch": Timing(8.0, 7.0, 9.0, 5)},
        "ratio": {"torch": 4.0},
    }
    return Case(**values | changes)


def test_variants_take_turns() -> None:
    order: list[str] = []
    times = interleave(
        {name: (lambda n=name: (order.append(n), time.sleep(0.002))) for name in "ab"},
        rounds=4,
        warmup=0,
    )
    # one call each to find the repeats, then a round is one measurement of each
    assert order == ["a", "b"] + ["a", "b"] * 4
    assert times["a"].n == 4 and times["a"].min <= times["a"].median <= times["a"].max
    assert times["a"].min >= 0.002


def test_a_wrong_result_is_not_timed() -> None:
    called: list[int] = []
    with pytest.raises(AssertionError, match="wrong"):
        compare(
            op="copy",
            case={},
            ours=lambda: called.append(1),
            baselines={},
            correct=lambda: False,
        )
    assert not called


@pytest.mark.parametrize(("asked", "met"), [(2.0, True), (1e6, False)])
def test_targets_are_judged(asked: float, met: bool) -> None:
    found = compare(
        op="sleep",
        case={"ms": 1},
        ours=lambda: 0.001,
        baselines={"slow": lambda: 0.004},
        correct=lambda: True,
        floor=0.0005,
        targets={"slow": asked},
        rounds=3,
        clock=lambda run, repeats: run(),
    )
    assert found.met is met and found.ratio["slow"] == pytest.approx(4)
    assert found.floor == pytest.approx(0.5) and found.fraction_of_floor == pytest.approx(0.5)


def test_rates_swap_the_extremes() -> None:
    assert Timing(2.0, 1.0, 4.0, 3).rate(8) == Timing(4.0, 2.0, 8.0, 3)


def test_results_and_tables(tmp_path: Path) -> None:
    missed = case(target={"torch": 5.0}, met=False, fraction_of_floor=0.5, floor=1.0)
    path = results.write("copy", [case(), missed], "python -m benchmarks", tmp_path)
    data = json.loads(path.read_text())
    assert data["schema"] == 1 and data["suite"] == "copy" and len(data["cases"]) == 2
    assert set(data) == {"schema", "suite", "git", "machine", "versions", "command", "cases"}
    assert data["cases"][0]["ours"] == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 5}

    page = tmp_path / "README.md"
    page.write_text("a\n<!-- benchmark:copy -->\nold\n<!-- /benchmark -->\nb\n")
    for _ in range(2):
        assert results.update_tables(page, tmp_path) == ["copy"]
    text = page.read_text()
    assert text.startswith("a\n") and text.endswith("-->\nb\n") and "old" not in text
    assert "| copy | n=8 dtype=float32 | 2 ms | 4.00x torch | 50% | 5x torch: MISSED |" in text


def test_a_headline_spans_all_cases_of_its_operation() -> None:
    fork = headlines.Headline("a fork", "copy", "copy", {"torch": "torch", "client": "a client"})
    cases = [
        case(ratio={"torch": 4.0, "client": 0.994}, target={"torch": 5.0}, met=False),
        case(ratio={"torch": 12.3}, target={"torch": 5.0}, met=True),
        # another operation, and the memory of this one
        case(op="other", ratio={"torch": 99.0}),
        case(metric="peak", ratio={"torch": 99.0}),
    ]
    data = [each.as_json() for each in cases]
    said = ["a fork", "4.0 to 12x torch, 0.99x a client", "1 of 2"]
    assert headlines.line(fork, data) == said
    assert headlines.line(fork, data[:1])[1:] == ["4.0x torch, 0.99x a client", "0 of 1"]


def test_own_time_leaves_out_what_is_called_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("benchmarks.own_time.time.perf_counter", lambda: now)
    own = OwnTime()
    hook = own.ours(lambda: spend(2))
    stock = own.theirs(lambda: (spend(10), hook(), spend(10)))
    outer = own.ours(lambda: (spend(1), stock(), hook(), spend(1)))
    outer()
    # two hooks and what the outer one does itself
    assert own.seconds == 2 + 2 + 2
    stock()
    assert own.seconds == 8


def test_provenance_needs_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results.git() == "unknown" and results.driver() == "unknown"
    monkeypatch.setenv("SPARK_COMMIT", "abc1234")
    assert results.git() == "abc1234"


CPU = torch.device("cpu")


def test_a_module_of_the_gpu_suite_is_measured_in_a_process_of_its_own() -> None:
    (cases,) = gpu.apart("kv_fork", 300, CPU, quick=True)
    assert [one.op for one in cases] == ["kv_fork", "kv_fork"]


def fall(name: str, *_: object) -> None:
    """Stand in for a module that the device brings down, or that hangs."""
    if name == "dies":
        os._exit(1)
    time.sleep(600)


@pytest.mark.parametrize(
    ("name", "seconds", "why"), [("dies", 300, "its process died"), ("hangs", 1, "after 1 s")]
)
def test_a_module_that_falls_is_a_missed_target(
    name: str, seconds: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "measure", fall)
    ((case,),) = gpu.apart(name, seconds, CPU)
    assert case.met is False and why in case.case["failed"]


def test_a_failed_measurement_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Case]:
        raise ValueError("no such layout")

    monkeypatch.setattr(gpu, "calls", lambda *_: [broken, lambda: [case()]])
    answers: list[list[Case] | None] = []
    gpu.measure("score", type("Queue", (), {"put": staticmethod(answers.append)}), CPU, True)
    (failed,), (good,), end = answers
    assert failed.met is False and "no such layout" in failed.case["failed"]
    assert good.op == "copy" and end is None
