"""The CUDA kernels as CPU code: compiled by g++ against emulator/ and loaded as operators."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from spark_kernels import Scores
from spark_kernels.score import op

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "emulator"
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas")
ARGUMENTS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "allowed",
    "seed",
    "position",
    "tokens",
)


@functools.cache
def library() -> None:
    """Compile what changed and load it: `torch.ops.spark_emulator` is there afterwards."""
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    headers = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cuh")]
    state = hashlib.sha256(torch.__version__.encode())
    for path in (*sources, *headers, *sorted(HERE.glob("*.h"))):
        state.update(path.read_bytes())
    target = ROOT / "build" / f"emulated-{state.hexdigest()[:16]}.so"
    if not target.exists():
        compile_to(target, sources)
    torch.ops.load_library(str(target))


def compile_to(target: Path, sources: list[Path]) -> None:
    """Compile and link the sources; the target appears whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    torch_root = Path(torch.__file__).parent
    command = [os.environ.get("CXX", "g++"), *FLAGS, "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += ["-I", str(HERE), "-I", str(ROOT / "csrc/include")]
    command += ["-isystem", str(torch_root / "include")]
    command += ["-x", "c++", *map(str, sources)]
    command += ["-L", str(torch_root / "lib"), "-ltorch", "-ltorch_cpu", "-lc10"]
    part = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    part.rename(target)


def score(logits: Tensor, tempered_entropy: bool = True, **inputs: Tensor) -> Scores:
    """Return what the CUDA kernels make of arguments as `spark_kernels.score` takes them."""
    library()
    out = op._allocate(logits, tempered_entropy)
    given = [inputs.pop(name, None) for name in ARGUMENTS]
    assert not inputs, inputs
    torch.ops.spark_emulator.score(logits, *given, *out)
    return out


def kv_fork(buffers: list[Tensor], pairs: Tensor, layout: str = "HND") -> None:
    """Copy with the CUDA kernel; pairs of one source next to each other."""
    library()
    torch.ops.spark_emulator.kv_fork(buffers, pairs, layout == "NHD")
