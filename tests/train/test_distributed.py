"""Two processes against one: losses, weights, checkpoints across their number; fair shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.core import Node, Tree
from spark.train.shares import shared_out

HERE = Path(__file__).parent


def sharded(processes: int, *args: str | Path) -> list[list[float]]:
    """Return the numbers of every line that rank 0 printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(HERE / "sharded_run.py"), *map(str, args)]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    run = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [[float(word) for word in line.split()[1:]] for line in run.stdout.splitlines()]


def close(lines: list[list[float]]) -> list[Any]:
    """What another number of processes prints: sums in another order."""
    return [pytest.approx(line, rel=2e-4) for line in lines]


@pytest.mark.slow
def test_two_processes_train_like_one_and_take_up_each_others_checkpoints(tmp_path: Path) -> None:
    alone = sharded(1, 4, tmp_path / "one")
    assert len(alone) == 6 and alone[0][0] != alone[3][0]
    assert alone == close(sharded(2, 4, tmp_path / "both"))
    first = sharded(2, 2, tmp_path / "two")
    rest = sharded(1, 4, tmp_path / "one", "--load", tmp_path / "two" / "checkpoint-2")
    assert alone == close([*first[:2], *rest])


@pytest.mark.slow
def test_two_processes_train_adapters_like_one(tmp_path: Path) -> None:
    alone = sharded(1, 3, tmp_path / "one", "--lora")
    assert len(alone) == 5
    assert alone == close(sharded(2, 3, tmp_path / "both", "--lora"))


@pytest.mark.slow
def test_a_checkpoint_before_the_first_update_changes_nothing(tmp_path: Path) -> None:
    plain = sharded(1, 2, tmp_path / "plain")
    assert plain == sharded(1, 2, tmp_path / "saved", "--save-first")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.integers(1, 4))
def test_trees_are_shared_out_whole_and_evenly(sizes: list[int], ranks: int) -> None:
    trees = [Tree(task="t", seed=0, nodes=[Node(parent=None, tokens=[0] * size)]) for size in sizes]
    shares = shared_out(trees, ranks)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in share) for share in shares]
    # largest first: nobody has more than the fair share and one tree's worth
    assert max(loads) - min(loads) <= max(sizes)
    assert shares == shared_out(trees, ranks)
