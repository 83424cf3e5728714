"""What the documents say: every command is run, every table is the measured one, links lead on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results
from spark.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# the blocks of docs/serving.md need a server: tests/serve/test_serving_page.py runs them
READ = [page for page in PAGES if page.name != "serving.md"]
CI = (ROOT / ".ci" / "run").read_text()

LAUNCHED = "tests/recipes/test_launched.py, slow"
# command -> who runs it; the rest of the commands are run right here, in order
ELSEWHERE = {
    "make run": "tests/cli/test_main_job.py runs the same command on the recipe's small form",
    "make test": "this run",
    "make lint": "CI",
    "make test-slow": "CI",
    "make test-vllm": "CI",
    "make test-sglang": "CI",
    "make setup": "CI",
    "make format": "its tools are those of make lint",
    "make bench": "tests/test_benchmarks.py runs every suite in small (slow, CI)",
    ".ci/run": "CI",
    "torchrun --nproc-per-node 2 -m spark train first_light_smoke": LAUNCHED,
    "accelerate launch --num_processes 2 -m spark train first_light_smoke": LAUNCHED,
    "make test-integrations": "CI",
    **dict.fromkeys(
        ["spark env check levers:Levers", "spark sft levers:levers", "spark train levers:levers"],
        "tests/cli/test_example.py, in small",
    ),
    "make gpu": "whoever has one; tests/test_benchmarks.py and the emulator run its code on a CPU",
}


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of `page` in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def commands() -> list[tuple[str, str]]:
    """Return (page, command) for every line of the shell blocks, comments cut off."""
    found = []
    for page in READ:
        for block in blocks(page, "bash"):
            lines = (line.split("  #")[0].strip() for line in block.splitlines())
            found += [(page.name, line) for line in lines if line and not line.startswith("#")]
    return found


def environment() -> dict[str, str]:
    """Return an environment in which `spark` is the installed command, without a network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}


def test_every_command_is_run_somewhere() -> None:
    for page, command in commands():
        here = command.startswith("spark ")
        installs = command.startswith(("pip install ", "apt-get install ", "git clone "))
        assert here or installs or command in ELSEWHERE, f"{page}: who runs {command!r}?"
        if ELSEWHERE.get(command) == "CI" and command != ".ci/run":
            assert f"\n{command}" in CI


def test_spark_commands_run_in_order(tmp_path: Path) -> None:
    told = dict.fromkeys(line for _, line in commands() if line not in ELSEWHERE)
    own = [line for line in told if line.startswith("spark ")]
    assert own
    for command in own:
        run = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}: {run.stderr}"


def test_every_flag_of_a_recipe_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    dotted = r"--(?:\w+\.)+\w+"
    for command in ("train", "sft"):
        assert main([command, "first_light", "--help"]) == 0
    known = set(re.findall(dotted, capsys.readouterr().out))
    # the changelog also has the flags that there were
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    told = {(page.name, flag) for page in pages for flag in re.findall(dotted, page.read_text())}
    assert told and {(page, flag) for page, flag in told if flag not in known} == set()


def test_make_run_is_the_documented_recipe() -> None:
    told = subprocess.run(
        ["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "spark train first_light\n" in told.stdout


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    for code in blocks(page, "python"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def test_readme_code_is_ten_lines() -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_the_measured_ones(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    results.update_tables(copy)
    remedy = f"python -m benchmarks --print --tables {page.relative_to(ROOT)}"
    assert copy.read_text() == page.read_text(), remedy


def test_every_stored_result_has_its_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(f"<!-- benchmark:{result['suite']} -->" in text for result in results.read())
    assert "<!-- benchmark:claims -->" in text
    assert "<!-- benchmark:headlines -->" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
