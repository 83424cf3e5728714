"""The shape of the code: who may import whom, what an import pulls in, how long a file gets."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = {"spark.serve", "spark.view", "spark.recipes", "spark.integrations"}
OUTSIDE |= {"spark.cli", "spark.commands", "spark.__main__"}

# room -> what it may import of ours; a name covers what lies below it
GROUND = {"spark.core", "spark.registry", "spark.seeds", "spark.novelty"}
MAY_IMPORT = {
    "spark_kernels": {"spark_kernels"},
    **{module: set() for module in GROUND},
    "spark.branching": {"spark.branching", *GROUND},
    "spark.envs": {"spark.envs", *GROUND},
    "spark.engines": {"spark.engines", "spark_kernels", *GROUND},
    "spark.rollout": {"spark.branching", "spark.envs", "spark.engines", "spark.rollout", *GROUND},
    "spark.train": {"spark.train", "spark_kernels", *GROUND},
}
# the driver meets implementations only through the protocols and the registries
PROTOCOLS = {"spark.branching.budgets"} | {
    f"spark.{room}{end}" for room in ("branching", "envs", "engines") for end in ("", ".base")
}
# what engines have in common
SHARED = {f"spark.engines.{name}" for name in ("http", "served", "text", "weights", "wire")}
HEAVY = {"torch", "transformers", "triton", "textworld", "alfworld", "vllm", "sglang", "peft"}
HEAVY |= {"gymnasium", "minigrid", "scienceworld", "py4j", "bm25s", "rapidfuzz"}
# path -> why it is longer than 300 lines
LONG_FILES = {
    "tests/serve/http_behaviour.py": "what every server must do, in one place",
    "tests/engines/behaviour.py": "the whole protocol in one place: every engine runs all of it",
}


def modules() -> dict[str, Path]:
    """Return module name -> file of everything we ship."""
    found = {}
    for package in ("spark", "spark_kernels"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """Return the modules of ours that `module` imports, lazily or not; type checking aside."""
    tree = ast.parse(MODULES[module].read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for part in node.body for child in ast.walk(part))
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import of {node.module}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else str(node.module))
    return {name for name in names if name in MODULES and name != module}


GRAPH = {name: imports(name) for name in MODULES}


def below(module: str, rooms: set[str]) -> bool:
    """Return whether `module` is one of `rooms` or lies in one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str | None:
    """Return the room whose rule applies to `module`; None for the outside and `spark` itself."""
    return next((room for room in MAY_IMPORT if below(module, {room})), None)


def test_every_module_has_a_room() -> None:
    homeless = [m for m in MODULES if m != "spark" and not room_of(m) and not below(m, OUTSIDE)]
    assert not homeless


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name)])
def test_imports_run_one_way(module: str) -> None:
    allowed = MAY_IMPORT[str(room_of(module))]
    wrong = {name for name in GRAPH[module] if not below(name, allowed)}
    assert not wrong, f"{module} must not import {sorted(wrong)}"


def test_rollout_knows_no_implementation() -> None:
    seen = {name for module in GRAPH if below(module, {"spark.rollout"}) for name in GRAPH[module]}
    others = {name for name in seen if below(name, {"spark.branching", "spark.envs"})}
    others |= {name for name in seen if below(name, {"spark.engines"})}
    assert others <= PROTOCOLS, f"only protocols, not {sorted(others - PROTOCOLS)}"


def test_engines_do_not_know_each_other() -> None:
    for module, found in GRAPH.items():
        if module.startswith("spark.engines.") and module.count(".") >= 3:
            own = ".".join(module.split(".")[:3])
            others = {name for name in found if below(name, {"spark.engines"})}
            wrong = {n for n in others if not below(n, {own}) and n not in PROTOCOLS | SHARED}
            assert not wrong, f"{module} imports {sorted(wrong)}"


def test_nobody_imports_the_view() -> None:
    for module, found in GRAPH.items():
        if not below(module, {"spark.view", "spark.cli", "spark.commands"}):
            assert not {name for name in found if below(name, {"spark.view"})}, module


def test_no_import_circles() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for name in sorted(GRAPH[module]):
                visit(name, (*trail, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import spark, spark.cli", HEAVY),
        # what `spark train RECIPE --help` needs
        ("from spark.recipes import RECIPES; [RECIPES[name]() for name in RECIPES]", HEAVY),
        ("import spark.commands.train", HEAVY),
        ("import spark_kernels", HEAVY - {"torch"}),
        ("import spark.core, spark.engines.base, spark.envs.base, spark.branching", HEAVY),
    ],
    ids=["cli", "recipes", "train", "kernels", "protocols"],
)
def test_imports_stay_slim(statement: str, banned: set[str]) -> None:
    code = f"import sys; {statement}; print(*(set(sys.modules) & {banned!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("spark", "spark_kernels", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    long = {name: length for name, length in lengths.items() if length > 300}
    assert set(long) == set(LONG_FILES), f"over 300 lines: {long}; listed: {sorted(LONG_FILES)}"
