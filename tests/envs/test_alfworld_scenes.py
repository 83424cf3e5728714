"""Generated scenes: options, splits, names and the cache."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("alfworld")

from spark.envs.alfworld import TASK_TYPES, Scenes, translate
from spark.envs.alfworld.floorplans import CLOSED, UNSEEN, names_in_use
from spark.envs.alfworld.generate import sample_game
from spark.envs.alfworld.scenes import TaskName
from spark.envs.alfworld.source import AlfworldSource

HARD = Scenes(
    rooms=("Bedroom", "Bathroom"),
    task_types=("pick_and_place_simple", "look_at_obj_in_light"),
    held_out_types=("pick_two_obj_and_place",),
    max_receptacles=9,
    object_names=10,
    closed=0.7,
    hidden=1.0,
)


def games(scenes, split, count=60, seed=0):
    names = [TaskName(split, seed, number, scenes.digest()) for number in range(count)]
    return [sample_game(scenes, name) for name in names]


def named(game, predicate):
    """Return id -> name without "Type" for the initial facts with `predicate`."""
    return {identity: name.removesuffix("Type") for identity, name in facts(game, predicate)}


def facts(game, predicate):
    """Return the arguments of the initial facts with `predicate`."""
    lines = [line.strip("()").split() for line in game.problem.split("\n")]
    return [words[1:] for words in lines if words and words[0] == predicate]


def test_splits_hold_out_floor_plans_and_task_types():
    scenes = Scenes()
    seen = games(scenes, "train") + games(scenes, "L0")
    assert not {game.floor_plan for game in seen} & UNSEEN
    assert {game.task_type for game in seen} == set(scenes.task_types)
    unseen = games(scenes, "L1")
    assert {game.floor_plan for game in unseen} == UNSEEN
    assert {game.task_type for game in unseen} == set(scenes.task_types)
    held_out = games(scenes, "L2")
    assert {game.task_type for game in held_out} == set(scenes.held_out_types)
    assert not {game.floor_plan for game in held_out} & UNSEEN


def test_no_game_twice():
    problems = [
        game.problem for split in ("train", "L0", "L1", "L2") for game in games(HARD, split)
    ]
    assert len(set(problems)) == len(problems)


def test_names_fix_games_in_every_process():
    """Names, games and texts do not depend on Python's hash seed."""
    program = (
        "from spark.envs.alfworld import Scenes\n"
        "from spark.envs.alfworld.source import AlfworldSource\n"
        "import hashlib\n"
        "source = AlfworldSource(scenes=Scenes(max_receptacles=12))\n"
        "for split in ('train', 'L1', 'L2'):\n"
        "    for task in source.tasks(split, 3, seed=4):\n"
        "        steps = source.expert(task).steps\n"
        "        print(task, hashlib.sha256(repr(steps).encode()).hexdigest())\n"
    )
    outputs = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0].count("\n") == 9
    assert outputs[0] == outputs[1]


def test_scene_options_are_obeyed():
    closed, hidden, receptacles, names = 0, 0, 0, set()
    for game in games(HARD, "train"):
        kinds = named(game, "receptacleType")
        assert len(kinds) <= HARD.max_receptacles
        receptacles += len(kinds)
        closed += sum(kind in CLOSED for kind in kinds.values())
        types = named(game, "objectType")
        movable = {identity for (identity,) in facts(game, "pickupable")}
        names |= {types[identity] for identity in movable}
        places = dict(facts(game, "inReceptacle"))
        targets = [i for i in movable if types[i] == game.params["object_target"]]
        hidden += all(kinds[places[target]] in CLOSED for target in targets)
        assert game.params["parent_target"] not in {kinds[places[target]] for target in targets}
    assert names <= names_in_use(HARD)
    assert len(names_in_use(HARD)) == HARD.object_names
    plain = games(Scenes(rooms=HARD.rooms, task_types=HARD.task_types), "train")
    easy = [kind in CLOSED for game in plain for kind in named(game, "receptacleType").values()]
    assert closed / receptacles > 0.5 > sum(easy) / len(easy)
    assert hidden > 0.6 * 60


def test_pick_two_has_two_and_goals_vary():
    for game in games(HARD, "L2", 20):
        counts = Counter(name for _, name in facts(game, "objectType"))
        assert counts[game.params["object_target"] + "Type"] >= 2
    assert len({game.goal for game in games(HARD, "train")}) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": ()}, "rooms is empty"),
        ({"rooms": ("Cellar",)}, "rooms: unknown 'Cellar'; choose among Kitchen"),
        ({"task_types": ("pick_up",)}, "task_types: unknown 'pick_up'"),
        ({"held_out_types": TASK_TYPES}, "held_out_types: 'look_at_obj_in_light' is among"),
        ({"max_receptacles": 1}, "max_receptacles=1 is too small"),
        ({"object_names": 0}, "object_names=0 is too small"),
        ({"fill": 1.5}, r"fill=1.5 is not a share; choose it within \[0, 1\]"),
        ({"hidden": -0.1}, "hidden=-0.1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**options)


def test_impossible_options_are_named():
    scenes = Scenes(rooms=("Bathroom",), task_types=("pick_heat_then_place_in_recep",))
    with pytest.raises(ValueError, match=r"no scene for pick_heat.* in split train; allow"):
        games(scenes, "train", 1)


def test_foreign_tasks_are_refused():
    source = AlfworldSource(scenes=HARD)
    with pytest.raises(ValueError, match="made with other scene options"):
        source.game(AlfworldSource().tasks("L0", 1)[0])
    for name in ("", "L0/1", "L9/0/1@aa", "L0/a/1@aa", "L0/0/1"):
        with pytest.raises(ValueError, match="no generated task"):
            source.game(name)
    with pytest.raises(ValueError, match="split: unknown 'test'; choose among train, L0, L1, L2"):
        source.tasks("test", 1)


def test_cache_is_used_filled_in_parallel_and_mended(game_cache, monkeypatch):
    source = AlfworldSource(scenes=HARD)
    tasks = source.tasks("train", 20, seed=random.randrange(10**9))
    before = set(game_cache.rglob("*.gz"))
    source.prepare([*tasks, *tasks], workers=2)
    source.prepare(tasks[:3])
    made = sorted(set(game_cache.rglob("*.gz")) - before)
    assert len(made) == len(tasks)
    assert set(game_cache.rglob("*")) - set(game_cache.rglob("*.gz")) >= {made[0].parent}
    made[0].write_bytes(made[0].read_bytes()[:100])
    spoilt = bytearray(made[2].read_bytes())
    # a block of a kind that there is none of
    spoilt[10] |= 0b110
    made[2].write_bytes(spoilt)
    made[1].write_bytes(gzip.compress(json.dumps({"not": "a problem"}).encode()))
    calls = []
    slow = translate._translate
    monkeypatch.setattr(translate, "_translate", lambda *a: calls.append(a) or slow(*a))
    for task in tasks:
        assert source.expert(task, kind="planner").won
    assert len(calls) == 3


shares = st.floats(0.0, 1.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    task_type=st.sampled_from(TASK_TYPES),
    split=st.sampled_from(["train", "L1"]),
    options=st.fixed_dictionaries(
        {
            "max_receptacles": st.integers(4, 10),
            "object_names": st.none() | st.integers(12, 30),
            "fill": shares,
            "closed": st.none() | shares,
            "hidden": shares,
            "name_seed": st.integers(0, 3),
        }
    ),
)
def test_every_game_can_be_won(task_type, split, options):
    """Whatever the options, a game that is made is solvable and not solved from the start."""
    other = next(name for name in TASK_TYPES if name != task_type)
    scenes = Scenes(task_types=(task_type,), held_out_types=(other,), **options)
    source = AlfworldSource(scenes=scenes)
    task = source.tasks(split, 1)[0]
    try:
        game = source.game(task)
    except ValueError as error:
        assert "leaves no scene" in str(error)
        return
    assert not game.start.won
    assert source.expert(task, kind="planner").won
