"""Thin bridge from setuptools to CMake; everything else is in pyproject.toml and CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def torch_directories() -> tuple[str, str]:
    """Return torch's (include, lib) directories.

    `-I` drops the path overlay of pip's isolated build, so the user's own torch is found and no
    second one is downloaded.
    """
    code = "import torch; print(torch.__path__[0])"
    for flags in (["-I"], []):
        found = subprocess.run(
            [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            root = Path(found.stdout.strip())
            return str(root / "include"), str(root / "lib")
    sys.exit("spark-branching builds against an installed torch >= 2.11: pip install torch first")


class CMakeBuild(build_ext):
    """Build `spark_kernels._C` and the operator libraries with CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build; the libraries land next to the extension."""
        import pybind11

        if shutil.which(os.environ.get("CXX", "g++")) is None:
            sys.exit("no C++ compiler found: apt-get install -y g++ (or set CXX)")
        include, lib = torch_directories()
        out = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(os.environ.get("SPARK_BUILD_DIR", self.build_temp)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "SPARK_OUT": out,
            "SPARK_TORCH_INCLUDE": include,
            "SPARK_TORCH_LIB": lib,
            "SPARK_CUDA": os.environ.get("SPARK_CUDA", "AUTO"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        if "SPARK_CUDA_ARCHS" in os.environ:
            options["SPARK_CUDA_ARCHS"] = os.environ["SPARK_CUDA_ARCHS"]
        flags = [f"-D{name}={value}" for name, value in options.items()]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        subprocess.check_call(["cmake", *generator, "-S", ROOT, "-B", build, *flags])
        subprocess.check_call(["cmake", "--build", build, "--parallel", str(os.cpu_count())])

    def copy_extensions_to_source(self) -> None:
        """For an editable install, bring the operator libraries along with the extension."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "spark_kernels" / "lib"
        target = ROOT / "spark_kernels" / "lib"
        shutil.copytree(built, target, copy_function=replace, dirs_exist_ok=True)


def replace(source: str, target: str) -> str:
    """Copy a file to a fresh inode: a process that has the old library loaded keeps it."""
    Path(target).unlink(missing_ok=True)
    return shutil.copy2(source, target)


def to_build() -> list[Extension]:
    """Return what CMake is to build: nothing with SPARK_USE_PRECOMPILED=1.

    An editable install in a second environment then shares the kernels that lie in place; the
    stable ABI loads in every torch.
    """
    if os.environ.get("SPARK_USE_PRECOMPILED") != "1":
        return [Extension("spark_kernels._C", [])]
    if not list(ROOT.glob("spark_kernels/lib/*.so")):
        sys.exit("SPARK_USE_PRECOMPILED=1, but nothing was built in place yet: run `make setup`")
    return []


setup(ext_modules=to_build(), cmdclass={"build_ext": CMakeBuild})
