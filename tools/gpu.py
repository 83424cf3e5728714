"""Everything there is to know on a machine with a GPU, in one command: `make gpu`.

    python -m tools.gpu [--skip build tests sanitizer benchmarks]

Builds with the torch of this interpreter, offline, or takes libraries that were carried here; runs
the tests marked `gpu` and, on the GPU, those marked `device`; writes benchmarks/results/gpu.json;
runs a small case of each kernel under compute-sanitizer where that exists. Every step runs whatever
became of the others, and none takes longer than its seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = {"build": 200, "tests": 240, "benchmarks": 450, "sanitizer": 150}
"""What is there, in this order, and the seconds it may take."""
SANITIZED = "tests/kernels/test_gpu.py::test_op_agrees_with_its_reference"


def python(*arguments: str, step: str, before: tuple[str, ...] = (), **more: str) -> bool:
    """Run this interpreter in the root; return whether it ended well and in the step's time.

    `more`: environment variables.
    """
    command = [*before, sys.executable, *arguments]
    print("$", *command, flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | more
    # a group of its own, so that what it started ends with it
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(STEPS[step]) == 0
    except subprocess.TimeoutExpired:
        print(f"stopped after {STEPS[step]} s", flush=True)
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def loads() -> bool:
    """Return whether the CUDA operators of this tree load in this torch."""
    code = "from spark_kernels import _load; import sys; sys.exit(not _load.has('score', 'cuda'))"
    return python("-c", code, step="build")


def build() -> bool:
    """Build in place without a network, unless what is here loads."""
    return loads() or (python("setup.py", "-q", "build_ext", "--inplace", step="build") and loads())


def tests() -> bool:
    """Run the tests that need a GPU; other files may need packages that are not here."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.(gpu|device)\b", path.read_text())
    ]
    # kernels compile side by side
    spread = ["-n", "4", "--dist", "worksteal"] if find_spec("xdist") else []
    run = ("-m", "pytest", "-q", *spread, "-m", "gpu or device", *files)
    return python(*run, step="tests", OMP_NUM_THREADS="4")


def sanitizer() -> bool:
    """Look for bad accesses and races in a small case of each kernel."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        print("compute-sanitizer is not installed: memcheck and racecheck are left out")
        return True
    run = ("-m", "pytest", "-q", "-m", "gpu", SANITIZED)
    return all(
        [
            # torch's own pools would hide an access behind the end of a tensor
            python(
                *run,
                step="sanitizer",
                before=(found, "--tool", tool, "--error-exitcode", "1"),
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
            for tool in ("memcheck", "racecheck")
        ]
    )


def benchmarks() -> bool:
    """Measure; a missed target is reported as a failure."""
    return python("-m", "benchmarks", "--suite", "gpu", step="benchmarks")


def main() -> int:
    """Run the steps; the exit code counts those that failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("--skip", nargs="+", choices=list(STEPS), default=[])
    args = parser.parse_args()
    if not python("-c", "import torch, sys; sys.exit(not torch.cuda.is_available())", step="build"):
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
