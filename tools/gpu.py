"""Everything there is to know on a machine with a GPU, in one command: `make gpu`.

    python -m tools.gpu [--skip build tests sanitizer benchmarks]

Builds with the torch of this interpreter, offline, or takes libraries that were carried here; runs
`pytest -m gpu`; runs a small case of each kernel under compute-sanitizer where that exists; writes
benchmarks/results/gpu.json. Every step runs whatever became of the others.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("build", "tests", "sanitizer", "benchmarks")
SANITIZED = "tests/kernels/test_gpu.py::test_op_agrees_with_its_reference"


def python(*arguments: str, before: tuple[str, ...] = ()) -> bool:
    """Run this interpreter in the root; return whether it ended well."""
    command = [*before, sys.executable, *arguments]
    print("$", *command, flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def loads() -> bool:
    """Return whether the CUDA operators of this tree load in this torch."""
    code = "from spark_kernels import _load; import sys; sys.exit(not _load.has('score', 'cuda'))"
    return python("-c", code)


def build() -> bool:
    """Build in place without a network, unless what is here loads."""
    return loads() or (python("setup.py", "-q", "build_ext", "--inplace") and loads())


def tests() -> bool:
    """Run the tests that need a GPU; other files may need packages that are not here."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    return python("-m", "pytest", "-q", "-m", "gpu", *files)


def sanitizer() -> bool:
    """Look for bad accesses and races in a small case of each kernel."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        print("compute-sanitizer is not installed: memcheck and racecheck are left out")
        return True
    run = ("-m", "pytest", "-q", "-m", "gpu", SANITIZED)
    return all(
        [
            python(*run, before=(found, "--tool", tool, "--error-exitcode", "1"))
            for tool in ("memcheck", "racecheck")
        ]
    )


def benchmarks() -> bool:
    """Measure; a missed target is reported as a failure."""
    return python("-m", "benchmarks", "--suite", "gpu")


def main() -> int:
    """Run the steps; the exit code counts those that failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[])
    args = parser.parse_args()
    if not python("-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"):
        sys.exit(f"torch of {sys.executable} sees no CUDA device: make gpu PYTHON=...")
    failed = []
    for step in STEPS:
        if step in args.skip:
            continue
        start = time.monotonic()
        if not globals()[step]():
            failed.append(step)
        print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
