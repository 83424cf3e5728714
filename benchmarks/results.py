"""Results as files: one JSON per suite, printed as a table and written into the README."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import headlines
from benchmarks.harness import Case

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
HEAD = ["op", "case", "ours", "against", "floor", "target"]


def write(suite: str, cases: list[Case], command: str, folder: Path = RESULTS) -> Path:
    """Write the results of a suite and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite}.json"
    data = {
        "schema": 1,
        "suite": suite,
        "git": git(),
        "machine": machine(),
        "versions": versions(),
        "command": command,
        "cases": [case.as_json() for case in cases],
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def read(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the stored results of all suites, by name of suite."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def git() -> str:
    """Return the commit measured, with "+" when the working tree differs from it.

    Without git or a repository it is that of SPARK_COMMIT, or "unknown".
    """

    def run(*args: str) -> str:
        return said_by("git", "-C", str(ROOT), *args)

    changed = run("status", "--porcelain", "--", ".", ":!benchmarks/results")
    # a copy of the tree has no history, so whoever copies it may say
    known = run("rev-parse", "--short", "HEAD") or os.environ.get("SPARK_COMMIT", "unknown")
    return known + ("+" if changed else "")


def said_by(*command: str) -> str:
    """Return what a program prints; "" where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores in use, GPU and its driver."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": named[0] if named else platform.processor(),
        "cores": torch.get_num_threads(),
        "gpu": gpu,
        "driver": driver() if gpu else None,
    }


def driver() -> str:
    """Return the version of the NVIDIA driver."""
    said = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.partition("\n")[0] or "unknown"


def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Return one line of text cells per case, in the order of `HEAD`."""
    return [
        [
            named(case, result["cases"]),
            " ".join(f"{name}={value}" for name, value in case["case"].items()),
            f"{case['ours']['median']:.4g} {case['unit']}",
            ", ".join(f"{ratio:.2f}x {name}" for name, ratio in case["ratio"].items()),
            percent(case["fraction_of_floor"]),
            verdict(case),
        ]
        for case in result["cases"]
    ]


def named(case: dict[str, Any], cases: list[dict[str, Any]]) -> str:
    """Return the op, and what was measured of it where that is more than its speed."""
    metrics = {other["metric"] for other in cases if other["op"] == case["op"]}
    told = len(metrics) > 1 and case["metric"] not in ("time", "throughput")
    return f"{case['op']}: {case['metric']}" if told else str(case["op"])


def percent(fraction: float | None) -> str:
    """Return a share of the floor as text."""
    return "" if fraction is None else f"{fraction:.0%}"


def verdict(case: dict[str, Any]) -> str:
    """Return the target and whether it was met."""
    if not case["target"]:
        return ""
    asked = ", ".join(
        percent(goal) + " of floor"
        if name == "floor"
        else (f"{goal:g} {name}" if name == case["unit"] else f"{goal:.3g}x {name}")
        for name, goal in case["target"].items()
    )
    return f"{asked}: {'met' if case['met'] else 'MISSED'}"


def markdown(result: dict[str, Any]) -> str:
    """Return a suite's results as a Markdown table with its provenance below."""
    where = result["machine"]
    device = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    measured = f"{device}; torch {result['versions']['torch']}; commit {result['git']}."
    return f"{table(HEAD, rows(result))}\n\n{measured}"


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def claims(stored: list[dict[str, Any]]) -> str:
    """Return one line for every target there is: the case that comes out worst against it."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for case in (case for result in stored for case in result["cases"] if case["target"]):
        name = case["op"], case["metric"]
        if name not in worst or margin(case) < margin(worst[name]):
            worst[name] = case
    return table(HEAD, rows({"cases": list(worst.values())}))


def margin(case: dict[str, Any]) -> float:
    """Return by what factor a case reaches its target, the least of them where it has several."""
    reached = {**case["ratio"], "floor": case["fraction_of_floor"]}
    # a target in the case's own unit is not to be exceeded; a cost may come out as a gain
    within = {case["unit"]: lambda goal: goal / max(case["ours"]["median"], 1e-9)}
    return min(
        within[name](goal) if name in within else reached[name] / goal
        for name, goal in case["target"].items()
    )


def update_tables(page: Path, folder: Path = RESULTS) -> list[str]:
    """Rewrite the tables of `page` that stand between markers; return their names.

    A table of suite `score` stands between `<!-- benchmark:score -->` and `<!-- /benchmark -->`;
    the table `headlines` has what `benchmarks.headlines` lists, `claims` the worst case of every
    target.
    """
    stored = read(folder)
    tables = {result["suite"]: markdown(result) for result in stored}
    tables["headlines"] = table(headlines.HEAD, headlines.lines(stored))
    tables["claims"] = claims(stored)
    text, written = page.read_text(), []
    for name, content in tables.items():
        head, mark, rest = text.partition(f"<!-- benchmark:{name} -->")
        _, end, tail = rest.partition("<!-- /benchmark -->")
        if mark and end:
            text = f"{head}{mark}\n{content}\n{end}{tail}"
            written.append(name)
    page.write_text(text)
    return written
