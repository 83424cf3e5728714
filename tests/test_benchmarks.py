"""Every benchmark suite runs at its small size and reports what the tables need."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks import results
from benchmarks.__main__ import OURS

pytestmark = pytest.mark.slow

# first_light is the main job over seeds: tests/cli/test_main_job.py runs that job
SUITES = [*(name for name in OURS if name != "first_light"), "gpu"]


@pytest.mark.parametrize("suite", SUITES)
def test_suite_runs_in_small(suite: str) -> None:
    cases = [case.as_json() for case in import_module(f"benchmarks.{suite}").run(quick=True)]
    assert cases
    for row in results.rows({"cases": cases}):
        assert len(row) == len(results.HEAD)
    for case in cases:
        assert case["ours"]["min"] <= case["ours"]["median"] <= case["ours"]["max"]
        # tokens prefilled beyond the prompt may be nought, a time or a rate never is
        assert case["ours"]["min"] > 0 or (case["unit"] == "tokens" and case["ours"]["min"] == 0)
        assert all(ratio >= 0 for ratio in case["ratio"].values())
