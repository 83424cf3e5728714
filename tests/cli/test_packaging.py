"""The built wheel: complete, installable, and its binaries load."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def pip(*args: object) -> None:
    """Run pip of this environment; the build tools in it come first on the path."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *map(str, args),
    ]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(folder)!r}))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pip(
        "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / made.stdout.split()[-1]
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("spark", "spark_kernels"):
        for path in (ROOT / package).rglob("*"):
            shipped = path.suffix in {".py", ".html", ".css", ".js", ".jinja", ".safetensors"}
            if shipped or path.name in {"py.typed", "tokenizer.json", "config.json"}:
                assert str(path.relative_to(ROOT)) in names
    assert "spark_kernels/lib/libspark_ops_cpu.so" in names
    assert any(name.startswith("spark_kernels/_C.") for name in names)
    assert not any(name.startswith(("tests", "benchmarks", "csrc")) for name in names)


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    code = "import spark, spark_kernels; print(spark.__file__); print(spark_kernels.active())"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in run.stdout
    assert "C++" in run.stdout and "torch reference" not in run.stdout
