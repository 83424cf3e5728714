"""TextWorld: generated games, kept on disk, forked in the cheaper of two ways."""

import os
import signal
from itertools import islice

import pytest
import random_policy

pytest.importorskip("textworld")

from spark.envs import ENVS
from spark.envs.conformance import conform
from spark.envs.pool import PooledSource
from spark.envs.textworld import TextWorldOptions, env, games
from spark.envs.textworld.options import TaskName
from spark.envs.textworld.source import HARMLESS, TextWorldSource


def source_of(**options):
    return TextWorldSource(TextWorldOptions(**{"level": 3, "harder_level": 12} | options))


@pytest.mark.parametrize("copy_from", [2, 50], ids=["copy", "replay"])
def test_conformance(monkeypatch, copy_from):
    monkeypatch.setattr(env, "COPY_FROM", copy_from)
    conform(source_of())


def test_fork_kind_depends_on_depth(monkeypatch):
    monkeypatch.setattr(env, "COPY_FROM", 2)
    playing = source_of().make()
    playing.reset(source_of().tasks("train", 1)[0])
    kinds = [playing.fork_kind]
    for _ in range(3):
        playing.step("look")
        kinds.append(playing.fork_kind)
    assert kinds == ["replay", "replay", "copy", "copy"]


@pytest.mark.parametrize("split", ["train", "L1", "L2"])
def test_games_are_won_by_their_own_solution(split):
    source = source_of()
    task = source.tasks(split, 1)[0]
    episode = source.expert(task)
    assert episode.won and len(episode.steps) > 1
    playing = source.make()
    text, info = playing.reset(task)
    assert "floor of the" in text and "$$$$" not in text and ">" not in text
    rewards = []
    for step in episode.steps:
        assert step.action in info["admissible"] and not info["won"]
        _, reward, over, truncated, info = playing.step(step.action)
        rewards.append(reward)
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert over and info["won"] and not truncated


def test_experts_make_detours():
    source = source_of()
    tasks = source.tasks("train", 1)
    (straight,) = source.experts(tasks, max_steps=50, seed=0, detours=0.0)
    (detour,) = source.experts(tasks, max_steps=50, seed=0, detours=0.5)
    assert detour.won and len(detour.steps) > len(straight.steps)
    way = [step.action for step in straight.steps]
    assert [step.action for step in detour.steps if not step.action.startswith(HARMLESS)] == way
    assert any("take " in text for text in islice(source.texts(0), 3))


def test_splits_differ():
    source = source_of()
    names = [TaskName.parse(source.tasks(split, 1)[0]) for split in ("train", "L0", "L1", "L2")]
    assert len({name.game_seed for name in names}) == 4
    assert [name.level for name in names] == [3, 3, 12, 3]
    assert [name.challenge for name in names] == ["treasure_hunter"] * 3 + ["coin_collector"]


def test_games_are_made_once(monkeypatch):
    source = source_of()
    task = source.tasks("train", 1)[0]
    first, _ = source.make().reset(task)
    monkeypatch.setattr(games, "compile_game", None)
    assert source.make().reset(task)[0] == first


def test_directions_tell_the_way():
    (plain,), (told,) = (source_of(directions=told).tasks("train", 1) for told in (False, True))
    assert str(TaskName.parse(told)) == told == f"{plain}-directions"
    text, _ = source_of(directions=True).make().reset(told)
    assert len(text.splitlines()[0]) > 100


def test_rollout_by_a_random_policy():
    source = source_of()
    random_policy.roll(source, source.tasks("train", 1))


def test_killed_worker_is_replaced():
    source = source_of()
    with PooledSource(source, workers=1) as pool:
        playing = pool.make()
        playing.reset(source.tasks("train", 1)[0])
        before = playing.step("look")
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert playing.step("look") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"challenge": "chess"}, "challenge: unknown 'chess'; choose among treasure_hunter"),
        ({"level": 31}, r"level=31 must lie in \[1, 30\]"),
        # of coin collectors it would do, but not of the games of L2
        (
            {"challenge": "coin_collector", "other_challenge": "treasure_hunter", "level": 31},
            "level=31",
        ),
        ({"other_challenge": "treasure_hunter"}, "L2 needs another one"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        source_of(**options)


@pytest.mark.parametrize(
    "task", ["L0/0/1", "L0/0/1@chess-3", "L9/0/1@coin_collector-3", "L0/0/1@treasure_hunter-99"]
)
def test_names_are_checked(task):
    with pytest.raises(ValueError, match="is no TextWorld game; expected"):
        source_of().make().reset(task)


def test_registry():
    assert ENVS["textworld"] is TextWorldSource
    with pytest.raises(ValueError, match="split: unknown 'dev'"):
        source_of().tasks("dev", 1)
