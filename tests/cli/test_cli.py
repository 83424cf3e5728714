"""The command line: one clear line for a user's mistake, and the exit codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from spark import __version__
from spark.cli import COMMANDS, SUMMARIES, guarded, main
from spark.commands.arguments import named_recipe, parse
from spark.recipes import RECIPES
from spark.recipes.config import Recipe

KNOWN = ", ".join(sorted(RECIPES))


@dataclass
class Inner:
    """Nested fields."""

    leaves: int = 8
    """Leaves of a tree."""
    pacing: Literal["paced", "first_come"] = "paced"


@dataclass
class Outer:
    """A configuration."""

    seed: int = 0
    """Seed of everything."""
    path: Path | None = None
    constrain: bool = True
    inner: Inner = field(default_factory=Inner)


class Game:
    """An environment that cannot be made from nothing."""

    def __init__(self, level: int) -> None:
        self.level = level


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in SUMMARIES)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spark {__version__}\n"


@pytest.mark.parametrize("command", sorted(SUMMARIES))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: spark {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["vew"], ["unknown command 'vew'", "view"]),
        (["view"], ["missing", "RUN"]),
        (["serve"], ["missing", "MODEL"]),
        (["view", "/nowhere"], ["run=/nowhere", "no such"]),
        (["view", ".", "--tre", "1"], ["--tre", "--tree INT"]),
        (["view", ".", "--tree", "x"], ["--tree", "'x'"]),
        (["view", ".", "--tree", "1"], ["tree=1", "add --terminal"]),
        (["train", f"{__name__}:KNOWN"], [f"'{__name__}:KNOWN'", "not a callable"]),
        (["env", "check", f"{__name__}:Game"], [":Game'", "'level'", "asks for nothing"]),
        (["eval", "first_light_smoke", "--env.name", f"{__name__}:Game"], [":Game'", "'level'"]),
        (["serve", "first_light", "--port", "0", "--device", "cuda:99"], ["device='cuda:99'"]),
        (["rollout", "first_light_smoke", "--device", "cuda:99"], ["device='cuda:99'", "or cpu"]),
        (["doctor", "now"], ["now"]),
    ],
)
def test_mistake_gets_one_line(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("spark: error: ") and told.err.count("\n") == 1
    assert all(word.lower() in told.err.lower() for word in words), told.err


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        def command() -> None:
            raise error

        return guarded(command)

    assert guarded(lambda: None) == 0
    assert fail(ValueError("width=1: at\n least 2")) == 2
    assert fail(OSError(28, "No space left on device", "trees.jsonl")) == 1
    assert fail(RuntimeError()) == 1
    assert fail(KeyboardInterrupt("Go on with: spark train x --resume")) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "spark: error: width=1: at least 2"
    assert "No space left on device" in lines[1] and lines[2] == "spark: error: RuntimeError"
    assert lines[3] == "spark: interrupted. Go on with: spark train x --resume"
    assert fail(SystemExit("spark: SGLang 9 is not supported")) == 1
    assert capsys.readouterr().err == "spark: SGLang 9 is not supported\n"
    assert (fail(SystemExit(3)), fail(SystemExit())) == (3, 0)
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError("a bug keeps its traceback"))


def test_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACEBACK", "1")
    with pytest.raises(ValueError, match="is missing"):
        guarded(lambda: named_recipe([], "spark train"))


def test_flags_are_the_fields() -> None:
    flags = ["--seed", "3", "--inner.leaves", "4", "--path", "a/b", "--no_constrain"]
    got = parse(Outer, flags, prog="x")
    assert got == Outer(seed=3, path=Path("a/b"), constrain=False, inner=Inner(leaves=4))
    default = Outer(seed=9, inner=Inner(leaves=2))
    assert parse(Outer, ["--inner.pacing", "first_come"], prog="x", default=default) == Outer(
        seed=9, inner=Inner(leaves=2, pacing="first_come")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--sede 3", ["--sede", "--seed INT"]),
        ("--seed three", ["--seed", "'three'"]),
        ("--inner.pacing never", ["--inner.pacing", "'never'", "first_come"]),
        ("--inner.leafs 2", ["--inner.leafs", "--inner.leaves INT"]),
        ("--seed", ["--seed"]),
        ("stray", ["stray"]),
    ],
)
def test_mistaken_flag_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        parse(Outer, text.split(), prog="x")
    message = str(error.value)
    assert "\n" not in message and "│" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("command", ["train", "sft", "rollout", "eval"])
def test_recipe_comes_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--seed", "1"]) == 2
    assert main([command, "frist_light"]) == 2
    missing, unknown = capsys.readouterr().err.splitlines()
    told = f"spark: error: recipe is missing: spark {command} RECIPE"
    assert missing == f"{told}, one of {KNOWN}, or module:function"
    told = "spark: error: unknown recipe 'frist_light'"
    assert unknown == f"{told}; known: {KNOWN}, or module:attribute"


@pytest.mark.parametrize("command", ["train", "sft", "rollout", "eval"])
def test_mistaken_recipe_field_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "first_light_smoke", "--rollout.leavs", "4"]) == 2
    assert main([command, "first_light_smoke", "--rollout.width", "1"]) == 2
    assert main([command, "first_light_smoke", "--rollout.roots", "99"]) == 2
    assert main([command, "first_light_smoke", "--rollout.rule", "sprak"]) == 2
    assert main([command, "first_light_smoke", "--engine", "locl"]) == 2
    misspelt, width, roots, rule, engine = capsys.readouterr().err.splitlines()
    assert "--rollout.leavs" in misspelt and "--rollout.leaves INT" in misspelt
    assert "width=1" in width and "at least 2" in width
    assert "roots=99" in roots and "leaves=8" in roots
    assert "'sprak'" in rule and "entropy" in rule
    assert "unknown engine 'locl'; known: " in engine


def test_every_recipe_field_is_a_plain_flag() -> None:
    recipe = RECIPES["first_light"]()
    got = parse(
        Recipe, ["--model.lora.rank", "8", "--eval.games.L0", "4"], prog="x", default=recipe
    )
    assert got.model.lora.rank == 8 and got.eval.games["L0"] == 4
    assert got.rollout == recipe.rollout


def test_registry_matches_the_overview() -> None:
    assert set(COMMANDS) == set(SUMMARIES)


def test_doctor_says_what_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    import spark_kernels

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for op, entry in spark_kernels.active().items():
        assert f"  {op} " in out and f"{entry['implementation']} ({entry['why']})" in out
    for word in ("python", "torch", "GPU", "g++", "nvcc", "local", "alfworld"):
        assert f"  {word} " in out
