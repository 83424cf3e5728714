"""The CUDA kernels as cubins for each architecture; needs nvcc, neither GPU nor a CUDA torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.resources import ARCHITECTURES, Cubin

ROOT = Path(__file__).resolve().parents[1]
# CMakeLists.txt compiles with the same
FLAGS = ("-std=c++20", "-O3", "-I", str(ROOT / "csrc/include"), "--fmad=false")


def missing() -> str:
    """Return why nothing can be compiled here, or ""."""
    return "" if shutil.which("nvcc") else "the CUDA kernels: nvcc is not installed"


def compiler() -> str:
    """Return the version of nvcc, such as "nvcc 13.0.88"."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.search(r'V([0-9.]+)', said)[1]}"


def compile_one(source: Path, arch: str, folder: Path) -> Cubin:
    """Compile one source; raise CalledProcessError with nvcc's words in `stderr`."""
    cubin = Cubin(source.stem, f"sm_{arch}", folder / f"{source.stem}_{arch}.cubin")
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = ["nvcc", *FLAGS, target, "-cubin", "-o", str(cubin.path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} for sm_{arch}:\n{done.stderr}")
    return cubin


def cubins(folder: Path) -> Iterator[Cubin]:
    """Yield every CUDA source compiled for every architecture."""
    jobs = [(s, a, folder) for s in sorted((ROOT / "csrc").rglob("*.cu")) for a in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda job: compile_one(*job), jobs)
