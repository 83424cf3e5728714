"""Every CUDA kernel compiles for every architecture without spills; needs nvcc, no GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_kernels_compile_without_spills() -> None:
    check = [sys.executable, ROOT / "tools/cuda_compile_check.py"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"sm_80", "sm_90a", "sm_100"}
