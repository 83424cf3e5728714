"""`spark env check`: the rules and the figures, for our environments and anybody's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from spark.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "envs"))

QUICK = ["--depths", "2", "4", "--continuations", "3"]


def test_figures_of_a_source_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", "toy_envs:EndlessSource", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "rules          kept" in out
    assert re.search(r"depth 2 +fork by replay [\d.e-]+ ms, replay [\d.e-]+ ms: [\d.]+x", out)
    assert "depth 4" in out and "3 of 3 the same (exact)" in out
    assert re.search(r"steps +[1-9]\d* a second, reset [\d.e-]+ ms", out)
    assert re.search(r"memory +\d+ MB", out)


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("toy_envs:BrokenSource", 1, r"in a fork, step 1 .* gave observation"),
        ("toy_envs:MuteSource", 1, 'info\\["admissible"\\] is missing'),
        ("toy_envs:UnscoredSource", 1, "the reward nan is no finite float"),
        ("toy_envs:FreeSource", 1, 'info\\["examples"\\] is None, not a sequence'),
        ("toy_envs:Corridor", 2, r"Corridor has no tasks\(\), so that it is no source of tasks"),
        ("toy_envs:NoSource", 2, "has no attribute 'NoSource'"),
        ("mazes", 2, "unknown environment 'mazes'; known: alfworld"),
    ],
)
def test_faults_are_named(
    source: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["env", "check", source, *QUICK]) == code
    assert re.search(message, capsys.readouterr().err)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--help"]) == 0
    assert main(["env", "measure"]) == 2
    assert main(["env", "check", "alfworld", "--depths", "0"]) == 2
    assert "depths=(0,) must be positive" in capsys.readouterr().err
