"""`spark serve`: a user's mistakes get one line, before anything has been loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spark.cli import main
from spark.serve.launch import become
from spark.serve.server import bind


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["Missing", "model name"]),
        (["/nowhere", "--port", "0"], ["model='/nowhere'", "save_pretrained"]),
        (["first_light", "--engine", "vlm"], ["'vlm'", "local", "sglang", "vllm"]),
        (["first_light", "--max_leaves", "0"], ["max_leaves=0", "at least 1"]),
        (["first_light", "--prot", "3"], ["--prot", "--port INT"]),
        (["first_light", "--port", "0", "--block_size", "0"], ["block_size", ">= 1"]),
        (["first_light", "--chat_template", "no.jinja"], ["'no.jinja'", "append_only"]),
        (["first_light", "--port", "99999"], ["port=99999", "65535"]),
        (["first_light", "--device", "cuda:99"], ["device='cuda:99'", "cpu"]),
        (["first_light", "--device", "gpu"], ["device='gpu'", "cuda:N"]),
        (["first_light", "--host", "no.such.host.invalid"], ["no.such.host.invalid"]),
    ],
)
def test_mistake_gets_one_line(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *argv]) in (1, 2)
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("spark: error: ")
    assert all(word in told[-1] for word in words), told


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    listener, url = bind("127.0.0.1", 0)
    listener.listen()
    port = url.rpartition(":")[2]
    assert main(["serve", "first_light", "--port", port]) == 1
    assert f"port={port}" in capsys.readouterr().err
    listener.close()


def test_an_engine_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match=r"'nobody' is not installed: pip .*\[nobody\]"):
        become("nobody", "nobody.server", [])


def test_the_process_becomes_the_engines_own() -> None:
    code = "from spark.serve.launch import become; become('json', 'json.tool', ['--help'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "json.tool" in run.stdout
