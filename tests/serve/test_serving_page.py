"""The commands and the code of docs/serving.md, run in order against the server they begin with."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_server import ENVIRONMENT, serving

from spark.serve.limits import Limits
from spark.serve.protocol import Branching

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BASH, PYTHON = (
    re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.S | re.M) for kind in ("bash", "python")
)
SERVE, *COMMANDS = [line.split("  #")[0] for block in BASH for line in block.splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Run the page's server; give its folder and the port that stands for the page's."""
    folder = tmp_path_factory.mktemp("served")
    with serving(SERVE.split(), folder) as url:
        yield folder, url.rpartition(":")[2]


def test_commands_run_in_order(served: tuple[Path, str]) -> None:
    folder, port = served
    assert SERVE.startswith("spark serve ") and COMMANDS
    for command in COMMANDS:
        line = command.replace("8000", port)
        if line.startswith("curl "):
            line = line.replace("curl ", "curl --fail ", 1)
        run = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}: {run.stderr}"
        assert run.stdout.strip()


def test_code_runs(served: tuple[Path, str]) -> None:
    folder, port = served
    for code in PYTHON:
        run = subprocess.run(
            [sys.executable, "-c", code.replace("8000", port)],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        # no token was computed twice
        assert run.stdout.splitlines()[5].startswith("0 "), run.stdout


def test_every_field_and_limit_is_described() -> None:
    names = {field.alias or name for name, field in Branching.model_fields.items()}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
    for name in Limits.__dataclass_fields__:
        assert (
            f"| `{name}` | {getattr(Limits(), name):g} |".replace("3.35544e+07", "33554432") in PAGE
        )
