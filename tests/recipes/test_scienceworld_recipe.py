"""ScienceWorld from nothing to a trained policy: its cold start, then both arms."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("scienceworld")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="ScienceWorld runs in Java"),
]


def test_the_smoke_recipe_runs_to_the_end(tmp_path: Path) -> None:
    for arguments in (
        ["sft", "scienceworld_smoke", "--output", "runs/scienceworld_smoke_start"],
        ["train", "scienceworld_smoke"],
    ):
        command = [sys.executable, "-m", "spark", *arguments]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
    run_dir = tmp_path / "runs" / "scienceworld_smoke"
    assert (run_dir / "report.html").exists()
    arms = json.loads((run_dir / "summary.json").read_text())["arms"]
    assert arms["spark"]["forks"] > 0 and arms["chain"]["forks"] == 0
    for arm in arms.values():
        assert arm["trained_tokens"] > 0
        assert set(arm["success_after"]) == {"L0", "L1", "L2"}
