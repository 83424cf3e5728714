"""Every GPU kernel compiles for every architecture and takes what the table says; no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import resources
from tools.resources import Row

COLUMNS = {"kernel", "arch", "registers", "shared", "stack", "local", "loads", "stores"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    rows, compilers, missing = resources.collect(tmp_path_factory.mktemp("cubins"))
    if not rows:
        pytest.skip("; ".join(missing))
    return rows, compilers


def test_kernels_take_what_the_table_says(compiled: tuple) -> None:
    assert not (wrong := resources.differences(*compiled)), "\n".join(wrong)


def test_the_table_has_every_kernel_on_every_architecture() -> None:
    rows = [row for part in resources.stored().values() for row in part["kernels"]]
    kernels = {row["kernel"] for row in rows}
    assert kernels and all(set(row) == COLUMNS for row in rows)
    assert len(rows) == len(kernels) * len(resources.ARCHITECTURES)
    sources = {path.stem for path in (Path(__file__).parents[2] / "csrc/cuda").glob("*.cu")}
    assert sources <= {name.split(":")[0] for name in kernels}


# kernel -> least number of 16-byte loads, and of 16-byte stores
WIDE = {
    r"kv_fork: fork_blocks<uint4>": (1, 1),
    # logits go from global to shared memory, past the registers
    r"score: measure<.*>": (1, 0),
    r"score: finish<.*>": (1, 0),
}


@pytest.mark.parametrize("pattern", WIDE)
def test_memory_moves_sixteen_bytes_at_a_time(pattern: str) -> None:
    rows = [row for part in resources.stored().values() for row in part["kernels"]]
    found = [row for row in rows if re.fullmatch(pattern, row["kernel"])]
    assert found
    for row in found:
        loads, stores = (row[key].get("128", 0) for key in ("loads", "stores"))
        assert loads >= WIDE[pattern][0] and stores >= WIDE[pattern][1], row


def test_differences_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("op: kernel", "sm_80", 32, 0, 0, 0, {"128": 1}, {"128": 1})
    spilled = Row("op: kernel", "sm_80", 255, 0, 16, 4, {"128": 1}, {"128": 1})
    table = {"cuda_cubins": {"compiler": "nvcc 1", "kernels": [vars(row)]}}
    monkeypatch.setattr(resources, "stored", lambda: table)
    same, other = {"cuda_cubins": "nvcc 1"}, {"cuda_cubins": "nvcc 2"}
    assert not resources.differences({"cuda_cubins": [row]}, same)
    assert len(resources.differences({"cuda_cubins": [spilled]}, same)) == 2
    assert len(resources.differences({"cuda_cubins": [spilled]}, other)) == 1
    assert len(resources.differences({"cuda_cubins": []}, same)) == 1
