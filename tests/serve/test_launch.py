"""`spark serve`: a user's mistakes get one line, before anything has been loaded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from http.client import IncompleteRead
from urllib.request import Request, urlopen

import pytest
import uvicorn
from command_server import ENVIRONMENT
from fastapi import FastAPI

from spark.cli import guarded, main
from spark.serve.launch import become
from spark.serve.server import Server, bind


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


def test_a_port_that_is_taken_meanwhile_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    first, url = bind("127.0.0.1", 0)
    second, _ = bind("127.0.0.1", int(url.rpartition(":")[2]))
    first.listen()
    server = Server(uvicorn.Config(FastAPI(), log_level="warning"), url)
    assert guarded(lambda: server.run(sockets=[second])) == 1
    told = capsys.readouterr().err
    assert url in told and told.count("\n") == 1
    first.close()


def test_interrupts_say_what_is_waited_for_and_then_end_it() -> None:
    long = {"prompt": "go", "n": 64, "max_tokens": 500, "ignore_eos": True, "stream": True}
    # background jobs of a shell, as we may be one, do not hear interrupts
    heard = ["env", "--default-signal=INT"]
    command = [*heard, "spark", "serve", "first_light", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdout and server.stderr
        url = server.stdout.readline().split()[-1]
        request = Request(f"{url}/v1/completions", json.dumps(long).encode())
        with urlopen(request) as answer:
            assert answer.readline().startswith(b"data: {")
            server.send_signal(signal.SIGINT)
            told = server.stderr.readline()
            assert told.startswith("spark: waiting for 1 requests") and "Ctrl-C" in told
            assert server.poll() is None
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 130
            with pytest.raises((IncompleteRead, ConnectionResetError)):
                answer.read()
        assert server.stderr.read() == "spark: interrupted.\n"


def test_an_engine_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match=r"'nobody' is not installed: pip .*\[nobody\]"):
        become("nobody", "nobody.server", [])


def test_the_process_becomes_the_engines_own() -> None:
    code = "from spark.serve.launch import become; become('json', 'json.tool', ['--help'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "json.tool" in run.stdout
