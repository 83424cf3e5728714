"""The CUDA kernels as cubins, taken from the built library; needs neither GPU nor a CUDA torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from spark_kernels._load import LIB
from tools.resources import Cubin, cuobjdump

LIBRARY = LIB / "libspark_ops_cuda.so"


def missing() -> str:
    """Return why there is nothing to take, or ""."""
    return "" if LIBRARY.exists() else f"the CUDA kernels: {LIBRARY.name} is not built (no nvcc)"


def compiler() -> str:
    """Return the version of nvcc that the library notes, such as "nvcc 13.0.88"."""
    noted = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", LIBRARY.read_bytes())
    assert noted, LIBRARY
    return f"nvcc {noted[1].decode()}"


def cubins(folder: Path) -> Iterator[Cubin]:
    """Yield every CUDA source compiled for every architecture, written into `folder`."""
    command = [cuobjdump(), "--extract-elf", "all", str(LIBRARY)]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    # SOURCE.ARCH.cubin
    for path in sorted(folder.glob("*.sm_*.cubin")):
        source, arch, _ = path.name.split(".")
        yield Cubin(source, arch, path)
