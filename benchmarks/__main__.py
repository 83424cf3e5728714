"""`python -m benchmarks [--suite score ...] [--quick] [--print]`: run suites, show the tables."""

from __future__ import annotations

import argparse
import pkgutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import results

TOOLS = {"__main__", "harness", "headlines", "own_time", "recorded", "results", "served"}
TOOLS |= {"sglang_cost", "sglang_engine", "vllm_cost", "vllm_engine"}
TOOLS |= {"statistics", "study", "study_record", "study_report", "study_signal"}
# run by name, each in the environment of its engine's tests
ENGINES = {"engine_vllm", "sglang", "vllm"}


def suites() -> list[str]:
    """Return the suites: the modules of this folder with a `run(quick) -> list[Case]`."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in found if module.name not in TOOLS)


OURS = [name for name in suites() if name not in (*ENGINES, "gpu")]


def show(result: dict) -> None:
    """Print one suite as a table, misses in red."""
    table = Table(*results.HEAD, title=f"{result['suite']}  ({result['git']})")
    for row, case in zip(results.rows(result), result["cases"], strict=True):
        table.add_row(*map(escape, row), style="red" if case["met"] is False else None)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> int:
    """Run the suites and write one JSON each; the exit code counts the missed targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", nargs="+", choices=suites(), default=OURS)
    parser.add_argument("--quick", action="store_true", help="few rounds, small sizes, not stored")
    parser.add_argument("--print", action="store_true", help="only show the stored results")
    parser.add_argument("--tables", type=Path, nargs="*", help="rewrite the tables of these pages")
    args = parser.parse_args()
    folder = results.RESULTS
    if args.quick:
        folder = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    if not args.print and args.tables is None:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        for suite in args.suite:
            cases = import_module(f"benchmarks.{suite}").run(quick=args.quick)
            results.write(suite, cases, command, folder)
    stored = [result for result in results.read(folder) if result["suite"] in args.suite]
    for result in stored:
        show(result)
    for page in args.tables or ():
        print(f"{page}: {', '.join(results.update_tables(page)) or 'no markers'}")
    return sum(case["met"] is False for result in stored for case in result["cases"])


if __name__ == "__main__":
    sys.exit(main())
