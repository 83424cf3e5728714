"""The Triton kernels as cubins, every shipped configuration for each architecture; needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tools.resources import Cubin

ARCHITECTURES = (80, 90, 100)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Build:
    """One specialisation. `types`: argument -> type; `aligned`: those that 16 divides."""

    name: str
    kernel: Any
    types: dict[str, str]
    aligned: frozenset[str]
    constants: dict[str, Any]
    options: dict[str, int]


def missing() -> str:
    """Return why nothing can be compiled here, or ""."""
    return "" if find_spec("triton") else "the Triton kernels: triton is not installed"


def compiler() -> str:
    """Return the version of Triton, such as "triton 3.7.1"."""
    import triton

    return f"triton {triton.__version__}"


def tree_attention() -> Iterator[Build]:
    """Yield what the engine launches: dtypes, head sizes, and a window with a soft cap."""
    from spark_kernels.tree_attention.device import Shape
    from spark_kernels.tree_attention.triton import tree_attention_kernel

    strides = [f"{name}_{axis}" for name in ("q", "k", "v", "out") for axis in ("token", "head")]
    shapes = [(torch.bfloat16, dim, 0, 0.0) for dim in (64, 96, 128, 256)]
    shapes += [(torch.float16, 128, 0, 0.0), (torch.bfloat16, 256, 4096, 50.0)]
    shapes += [(torch.float32, 64, 0, 0.0), (torch.float32, 128, 0, 0.0)]
    for dtype, dim, window, softcap in shapes:
        element = f"*{TYPES[dtype]}"
        types = dict.fromkeys(("q", "k", "v", "k_cache", "v_cache", "out"), element)
        types |= {"words": "*i32", "positions": "*i64", "partial": "*fp32", "stats": "*fp32"}
        types |= {"counters": "*i32", "kv_heads": "i32", "group": "i32", "scale": "fp32"}
        types |= dict.fromkeys(strides, "i32")
        how = {"WINDOW": window, "SOFTCAP": softcap, **Shape(16, 2, dim, dtype).tuning(16)}
        options = {name: how.pop(name) for name in ("num_warps", "num_stages")}
        capped = " window softcap" if window else ""
        name = f"tree_attention {TYPES[dtype]} dim {dim}{capped}"
        aligned = frozenset(types) - {"kv_heads", "group", "scale"}
        yield Build(name, tree_attention_kernel, types, aligned, how, options)


def head_loss() -> Iterator[Build]:
    """Yield all kernels for each dtype of the products, and with a soft cap."""
    from spark_kernels.head_loss import launch
    from spark_kernels.head_loss import triton as kernels

    for kernel, how in (
        (kernels.statistics_kernel, launch.STATISTICS),
        (kernels.gradient_kernel, launch.GRADIENT),
        (kernels.policy_kernel, launch.POLICY),
    ):
        for dtype, softcap in ((torch.bfloat16, 0.0), (torch.bfloat16, 30.0), (torch.float32, 0.0)):
            types = dict.fromkeys(kernel.arg_names, "*fp32")
            types |= {"logits": f"*{TYPES[dtype]}", "tokens": "*i64", "vocab": "i32"}
            types |= {"stride": "i32", "count": "i32", "low": "fp32", "high": "fp32"}
            types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
            options = dict(how)
            block = options.pop("BLOCK", launch.POLICY_BYTES // dtype.itemsize)
            constants = {"SOFTCAP": softcap, "BLOCK": block}
            types = {name: kind for name, kind in types.items() if name not in constants}
            capped = " softcap" if softcap else ""
            name = f"head_loss {TYPES[dtype]}{capped}"
            aligned = frozenset(types) - {"count", "low", "high"}
            yield Build(name, kernel, types, aligned, constants, options)


def builds() -> Iterator[Build]:
    """Yield every specialisation."""
    yield from tree_attention()
    yield from head_loss()


def compile_one(build: Build, arch: int, folder: Path) -> Cubin:
    """Compile one specialisation for one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    assert set(build.types) | set(build.constants) == set(names), build.name
    source = ASTSource(
        fn=build.kernel,
        signature={name: build.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in build.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned},
    )
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=build.options)
    name = f"{build.name} {build.kernel.fn.__name__} {arch}"
    path = folder / f"{name.replace(' ', '_')}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    return Cubin(build.name, f"sm_{'90a' if arch == 90 else arch}", path)


def cubins(folder: Path) -> Iterator[Cubin]:
    """Yield every specialisation for every architecture.

    In a process of its own: the tests interpret kernels, and such a one cannot be compiled.
    """
    command = [sys.executable, "-m", "tools.triton_cubins", str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    for line in done.stdout.splitlines():
        name, arch, path = line.split("\t")
        yield Cubin(name, arch, Path(path))


def main() -> None:
    """Compile everything into a folder and print a line each: name, architecture, path."""
    folder = Path(sys.argv[1])
    jobs = [(b, arch, folder) for b in builds() for arch in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for cubin in pool.map(lambda job: compile_one(*job), jobs):
            print(cubin.name, cubin.arch, cubin.path, sep="\t")


if __name__ == "__main__":
    main()
