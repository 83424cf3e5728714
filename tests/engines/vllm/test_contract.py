"""vLLM still is what the plugin takes it for; where not, a message says what changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spark.engines.vllm.contract import CONTRACT, broken, installed

pytestmark = pytest.mark.vllm


def test_the_installed_release_keeps_the_contract() -> None:
    assert broken(installed()) == []


def test_changes_are_named(tmp_path: Path) -> None:
    """Every entry is noticed when it goes; changed parameters and fields are spelled out."""
    for uses in CONTRACT:
        target = tmp_path / uses.module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed() / uses.module, target)
    assert broken(tmp_path) == []
    manager, request = tmp_path / CONTRACT[0].module, tmp_path / "v1/request.py"
    manager.write_text(manager.read_text().replace("get_computed_blocks(", "find_blocks("))
    request.write_text(request.read_text().replace("prefill_stats", "prompt_stats"))
    outputs = tmp_path / "outputs.py"
    outputs.write_text(outputs.read_text().replace("aggregate: bool", "merge: bool"))
    (tmp_path / "v1/sample/sampler.py").unlink()
    told = "\n".join(broken(tmp_path))
    assert "get_computed_blocks is gone (we need it: it names a child's blocks)" in told
    assert "Request.__init__ no longer mentions prefill_stats" in told
    assert "RequestOutput.add takes (self, next_output, merge), not next_output, agg" in told
    assert "Sampler.forward the module is gone" in told


@pytest.mark.slow
@pytest.mark.parametrize("release", ["0.26.0", "0.33.0"])
def test_sources_of_the_oldest_and_newest_release(release: str, tmp_path: Path) -> None:
    """Reads the wheel of a release that cannot run here: its binaries are for CUDA."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(tmp_path), f"vllm=={release}"]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        wanted = {f"vllm/{uses.module}" for uses in CONTRACT}
        for name in wanted & set(archive.namelist()):
            archive.extract(name, tmp_path)
    assert broken(tmp_path / "vllm") == []
