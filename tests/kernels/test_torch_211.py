"""torch 2.11 for CUDA 13 on Python 3.12: our libraries load in it, our sources build with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASKED = os.environ.get("SPARK_TEST_TORCH_211")
PYTHON = os.environ.get("SPARK_PYTHON_312") or shutil.which("python3.12")
CUDA = ROOT / "spark_kernels/lib/libspark_ops_cuda.so"

# needs no GPU
CODE = f"""
import torch
assert torch.version.cuda is not None, torch.__version__
for name in ("cpu", "cuda"):
    torch.ops.load_library("{CUDA.parent}/libspark_ops_" + name + ".so")
for op in ("score", "kv_fork"):
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("spark::" + op, key), (op, key)
logits = torch.zeros(2, 5)
out = [torch.zeros(2, dtype=torch.int64), *torch.zeros(4, 2)]
torch.ops.spark.score(logits, *[None] * 8, *out, None, None)
assert torch.allclose(out[3], torch.tensor(5.0).log()), out
print(torch.__version__, "loads both")
"""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ASKED, reason="downloads 5 GB: SPARK_TEST_TORCH_211=1 runs it"),
    pytest.mark.skipif(PYTHON is None, reason="no python3.12 (SPARK_PYTHON_312 names one)"),
]


@pytest.fixture(scope="module")
def python() -> Path:
    home = ROOT / "build" / "torch-2.11"
    found = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([str(PYTHON), "-m", "venv", home], check=True)
        packages = ["torch==2.11.0", "numpy<2.4", "setuptools", "pybind11", "cmake", "ninja"]
        subprocess.run([found, "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "ready").touch()
    return found


@pytest.mark.skipif(not CUDA.exists(), reason="the CUDA library was not built: nvcc is missing")
def test_libraries_load(python: Path) -> None:
    done = subprocess.run([python, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.11")


def test_sources_build(python: Path, tmp_path: Path) -> None:
    env = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    build = ["-q", "build_ext", "--build-temp", tmp_path / "build", "--build-lib", tmp_path]
    done = subprocess.run(
        [python, "setup.py", *build], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spark_kernels/lib/libspark_ops_cpu.so").exists()
