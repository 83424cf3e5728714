"""`spark serve --engine sglang` hands SGLang its own flags; SGLang itself is not needed here."""

from __future__ import annotations

from spark.serve.sglang.launch import command_line


def test_flags_become_sglangs() -> None:
    given = ["M", "--max_leaves", "8", "--port=80", "--weight_updates", "--tp-size", "2"]
    assert command_line(given) == [
        *["--model-path", "M", "--branching-max-leaves", "8", "--port=80", "--tp-size", "2"],
        *["--branching", "spark", "--host", "127.0.0.1"],
    ]


def test_what_the_user_says_stays() -> None:
    given = ["--model-path", "M", "--branching", "none", "--host", "0.0.0.0", "--port", "1"]
    assert command_line(given) == given
