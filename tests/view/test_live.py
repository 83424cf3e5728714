"""The live display of a running recipe."""

from __future__ import annotations

import io

from rich.console import Console

from spark.recipes.events import Progress
from spark.view.live import LiveProgress

STEP = Progress(
    phase="rollout",
    arm="spark",
    step=3,
    success=0.41,
    tokens_per_s=5200.0,
    reused_share=0.234,
    forks=1040,
    done_share=0.2,
    eta_s=310.0,
)
NUMBERS = ["success 41%", "5,200 tokens/s", "reused 23%", "forks 1,040", "5:10 left"]


def test_plain_lines_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with LiveProgress("first_light", console) as show:
        show(Progress(phase="evaluate", split="L1"))
        show(STEP)
        show(STEP)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2, "the same step is printed once"
    assert lines[0].split() == ["0%", "evaluate", "L1"]
    assert "20%  spark, step 3: rollout" in lines[1]
    assert all(number in lines[1] for number in NUMBERS)
    assert "\x1b" not in console.file.getvalue()


def test_panel_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with LiveProgress("first_light", console) as show:
        show(STEP)
    text = console.file.getvalue()
    assert "first_light" in text and "spark, step 3: rollout" in text
    assert all(number in text for number in NUMBERS)
