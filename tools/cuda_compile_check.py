"""Compile every CUDA kernel for each architecture and fail on spills or stack frames.

    python tools/cuda_compile_check.py [80 90a 100]

Needs nvcc; neither a GPU nor a CUDA build of torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90a", "100")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Compiled:
    """What ptxas said of one source for one architecture."""

    source: str
    architecture: str
    kernels: int
    max_registers: int
    clean: bool
    """Compiled, and no kernel has a stack frame or spills."""
    log: str


def compile_one(source: Path, architecture: str) -> Compiled:
    """Compile one source; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "-I", str(ROOT / "csrc/include")]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-cubin"]
        command += ["-Xptxas=-v,-warn-spills", "-o", str(Path(folder) / "out"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    frames = [int(n) for frame in FRAME.findall(done.stderr) for n in frame]
    clean = done.returncode == 0 and bool(registers) and not any(frames)
    return Compiled(
        source.name, architecture, len(registers), max(registers, default=0), clean, done.stderr
    )


def compile_all(architectures: tuple[str, ...] = ARCHITECTURES) -> list[Compiled]:
    """Compile all sources for all `architectures`."""
    jobs = [(s, a) for s in sorted((ROOT / "csrc").rglob("*.cu")) for a in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_one(*job), jobs))


def main() -> int:
    """Print one line a source and architecture; the exit code counts the failures."""
    results = compile_all(tuple(sys.argv[1:]) or ARCHITECTURES)
    for r in results:
        print(f"{r.source:20} sm_{r.architecture:5} kernels {r.kernels}", end="  ")
        print(f"registers <= {r.max_registers:3}  {'ok' if r.clean else 'SPILLS OR FAILS'}")
        if not r.clean:
            print(r.log)
    return sum(not r.clean for r in results)


if __name__ == "__main__":
    sys.exit(main())
