"""`spark doctor`: what is installed, what runs where, and why."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from spark import __version__
from spark.commands.arguments import parse

DISTRIBUTION = "spark-branching"
Row = tuple[str, str]


@dataclass(kw_only=True, slots=True)
class DoctorOptions:
    """Print versions, devices, compilers, extras and which implementation of each op is active."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parse(DoctorOptions, argv, prog="spark doctor")
    sections: dict[str, Callable[[], list[Row]]] = {
        "versions": versions,
        "machine": machine,
        "ops": ops,
        "engines": engines,
        "compilers": compilers,
        "extras": extras,
    }
    for title, rows in sections.items():
        print(title)
        for name, value in rows():
            print(f"  {name:<15} {value}")


def versions() -> list[Row]:
    """Return the versions of what always runs."""
    names = ("torch", "transformers", "tokenizers", "numpy")
    found = [(name, installed(name) or "not installed") for name in names]
    return [("spark", __version__), ("python", sys.version.split()[0]), *found]


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def machine() -> list[Row]:
    """Return processor, cores, vector instructions the kernels use, and GPUs."""
    import torch

    rows = [("system", platform.platform()), ("processor", processor())]
    rows.append(
        ("cores", f"{len(os.sched_getaffinity(0))} usable, torch uses {torch.get_num_threads()}")
    )
    if not torch.cuda.is_available():
        why = "no CUDA in this torch" if torch.version.cuda is None else "torch sees no device"
        return [*rows, ("GPU", f"none: {why}")]
    gpus = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
    rows += [("GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB") for gpu in gpus]
    return [*rows, ("CUDA of torch", str(torch.version.cuda))]


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def ops() -> list[Row]:
    """Return which implementation of every op runs, and why."""
    import spark_kernels

    return [
        (name, f"{entry['implementation']} ({entry['why']})")
        for name, entry in spark_kernels.active().items()
    ]


def engines() -> list[Row]:
    """Return the engines that can be used."""
    from spark.engines import ENGINES

    # engine -> the distribution it needs, and the extra that brings it
    outside = {
        "http": ("aiohttp", "serve"),
        "vllm": ("vllm", "vllm"),
        "sglang": ("sglang", "sglang"),
    }
    rows = []
    for name in ENGINES:
        if name not in outside:
            rows.append((name, "built in"))
            continue
        needs, extra = outside[name]
        remedy = f"not installed: pip install '{DISTRIBUTION}[{extra}]'"
        rows.append((name, f"{needs} {installed(needs)}" if installed(needs) else remedy))
    return rows


def compilers() -> list[Row]:
    """Return the compilers that `pip install` would use."""
    cxx = os.environ.get("CXX", "g++")
    remedies = {cxx: "apt-get install -y g++", "nvcc": "only needed to build the CUDA ops"}
    return [(name, tool(name) or f"not found: {remedy}") for name, remedy in remedies.items()]


def tool(name: str) -> str | None:
    """Return path and version of a compiler on the PATH."""
    path = shutil.which(name)
    if path is None:
        return None
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    lines = [line for line in told.stdout.splitlines() if any(char.isdigit() for char in line)]
    # nvcc names its release on the last but one line, g++ its version on the first
    release = [line for line in lines if "release" in line] or lines[:1]
    return f"{path}: {release[0].strip()}" if release else path


def extras() -> list[Row]:
    """Return, for every extra of the distribution, whether all of it is installed."""
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return [("", "unknown: spark runs from a source tree that is not installed")]
    rows = []
    for extra in names:
        own = [n for n in needs if n.marker and n.marker.evaluate({"extra": extra})]
        missing = [need.name for need in own if not installed(need.name)]
        remedy = f"missing {', '.join(missing)}: pip install '{DISTRIBUTION}[{extra}]'"
        rows.append((extra, remedy if missing else "installed"))
    return rows
