"""The remembering engine against the stock one, and forks that repeat exactly."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("alfworld")

from spark.envs import ENVS
from spark.envs.alfworld import TASK_TYPES, Scenes, engine, library
from spark.envs.alfworld.problem import GOAL_SLOT
from spark.envs.alfworld.source import AlfworldSource
from spark.envs.conformance import conform
from spark.envs.pool import PooledSource
from spark.envs.walk import follow, walk

SMALL = {"max_receptacles": 8, "fill": 0.3}


def source_of(task_type, **options):
    other = next(name for name in TASK_TYPES if name != task_type)
    scenes = Scenes(task_types=(task_type,), held_out_types=(other,), **(SMALL | options))
    return AlfworldSource(scenes=scenes)


def scramble_and_win(source, task, rng):
    """Return (commands, trace): random and senseless commands, then the planner's to the end."""
    env = source.make()
    text, info = env.reset(task)
    commands, trace = [], [[text, info["admissible"], 0, False]]

    def step(command):
        text, reward, done, _, info = env.step(command)
        commands.append(command)
        trace.append([text, info["admissible"], reward, done])
        return info["admissible"]

    admissible = info["admissible"]
    for _ in range(12):
        admissible = step("juggle mug 1" if rng.random() < 0.1 else rng.choice(admissible))
    at = env.snapshot()
    for command in at.game.plan(at.position):
        step(command)
    return commands, trace


def trace_of(source, task, commands):
    env = source.make()
    text, info = env.reset(task)
    trace = [[text, info["admissible"], 0, False]]
    for command in commands:
        text, reward, done, _, info = env.step(command)
        trace.append([text, info["admissible"], reward, done])
    return trace


def stock_traces(items):
    """Return what the stock engine gives for [(source, task, commands)]."""
    games = []
    for source, task, commands in items:
        data = source.game(task).data
        grammar = data.grammar.replace(GOAL_SLOT, data.goal)
        game = {"pddl_domain": data.domain, "grammar": grammar, "pddl_problem": data.problem}
        games.append({"game": game, "commands": commands})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stock_engine.py"))],
        input=json.dumps({"games": games}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_same_as_the_stock_engine():
    """Text, commands, reward and end are the stock engine's, for every task type up to a win."""
    rng = random.Random(0)
    items, ours = [], []
    for task_type in TASK_TYPES:
        source = source_of(task_type)
        task = source.tasks("train", 1, seed=5)[0]
        commands, trace = scramble_and_win(source, task, rng)
        items.append((source, task, commands))
        ours.append(trace)
    for task_type, mine, theirs in zip(TASK_TYPES, ours, stock_traces(items), strict=True):
        for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert a == b, f"{task_type}, step {step}"
        assert mine[-1][2:] == [1.0, True], task_type


def test_conformance():
    conform(source_of("pick_two_obj_and_place"), steps=12)


def test_conformance_in_a_pool():
    with PooledSource(source_of("look_at_obj_in_light"), workers=1) as pool:
        conform(pool)


def test_300_random_continuations_are_exact():
    """A state reached again by its id goes on as the same state reached by its actions does."""
    rng = random.Random(1)
    for task_type in TASK_TYPES[:3]:
        source = source_of(task_type)
        task = source.tasks("train", 1)[0]
        env = source.make()
        _, info = env.reset(task)
        tree = [([], env.fork(), info)]
        for _ in range(100):
            actions, parent, info = rng.choice(tree)
            child = parent.fork()
            tail = walk(child, info, rng, rng.randint(1, 4))
            tree.append((actions + tail, child, tail[-1].info))
            again = source_of(task_type).make() if len(tree) % 25 == 0 else source.make()
            again.reset(task)
            follow(again, actions)
            assert follow(again, tail) == tail


def test_text_depends_on_what_was_true_once():
    """Two ways to one state of the planner library, whose texts differ, are kept apart."""
    source = source_of("pick_and_place_simple", rooms=("Bedroom",), max_receptacles=10, fill=0.8)
    for task in source.tasks("train", 40):
        for way in shared_places(source.game(task)):
            straight, detour = [way[0], "look"], [*way, "look"]
            short, long = (trace_of(source, task, commands) for commands in (straight, detour))
            if short[-1][0] != long[-1][0]:
                items = [(source, task, straight), (source, task, detour)]
                assert [short, long] == stock_traces(items)
                return
    pytest.fail("no scene has two receptacles in one place with something to move between them")


def shared_places(game):
    """Yield [go, take, move, take, move back] for receptacles that share a place."""
    for go in game.start.admissible:
        if not go.startswith("go to "):
            continue
        _, there = game.move(game.start, go)
        for take in there.admissible:
            if not take.startswith("take "):
                continue
            thing, home = take.removeprefix("take ").split(" from ")
            _, holding = game.move(there, take)
            for move in holding.admissible:
                other = move.removeprefix(f"move {thing} to ")
                if move.startswith("move ") and other != home:
                    back = [f"take {thing} from {other}", f"move {thing} to {home}"]
                    yield [go, take, move, *back]


def test_more_games_than_libraries(monkeypatch):
    """Games that share planner libraries play as they do alone."""
    monkeypatch.setattr(library, "LIMIT", len(library._libraries) or 1)
    source = source_of("pick_and_place_simple")
    tasks = source.tasks("train", library.LIMIT + 3, seed=9)
    alone = []
    for number, task in enumerate(tasks):
        env = source.make()
        _, info = env.reset(task)
        alone.append(walk(env, info, random.Random(number), 8))
    others = source_of("pick_and_place_simple")
    envs = [others.make() for _ in tasks]
    for env, task in zip(envs, tasks, strict=True):
        env.reset(task)
    for step in range(8):
        for env, trace in zip(envs, alone, strict=True):
            assert follow(env, trace[step : step + 1]) == trace[step : step + 1]


def test_forgetting_changes_nothing(monkeypatch):
    source = source_of("pick_and_place_simple")
    task = source.tasks("train", 1)[0]
    env = source.make()
    _, info = env.reset(task)
    trace = walk(env, info, random.Random(3), 60)
    monkeypatch.setattr(engine, "POSITIONS_KEPT", 10)
    forgetful = source_of("pick_and_place_simple").make()
    forgetful.reset(task)
    middle = None
    for number, step in enumerate(trace):
        assert follow(forgetful, [step]) == [step]
        if number == 20:
            middle = forgetful.fork()
        assert len(forgetful.snapshot().game._made) <= 11
    assert follow(middle, trace[21:40]) == trace[21:40]


def test_senseless_commands_take_no_memory():
    source = source_of("pick_and_place_simple")
    env = source.make()
    _, info = env.reset(source.tasks("train", 1)[0])
    for number in range(100):
        assert env.step(f"juggle mug {number}") == (engine.NOTHING, 0.0, False, False, info)
    position = env.snapshot().position
    assert position is env.snapshot().game.start
    assert not [command for command in position.moves if command.startswith("juggle")]


def test_fork_and_reset_cost():
    """Far below the 0.5 ms that a fork may cost, even on a busy machine."""
    source = source_of("pick_and_place_simple")
    task = source.tasks("train", 1)[0]
    env = source.make()
    env.reset(task)
    snapshot = env.snapshot()

    def median_ms(call):
        times = []
        for _ in range(50):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return sorted(times)[25] * 1000

    assert median_ms(env.fork) < 0.1
    assert median_ms(lambda: env.restore(snapshot)) < 0.1
    assert median_ms(lambda: env.reset(task)) < 0.1


def test_globals_are_left_alone():
    """The translator overwrites `sys.argv` and the experts draw from the global generator."""
    arguments, state = list(sys.argv), random.getstate()
    source = source_of("look_at_obj_in_light")
    source.expert(source.tasks("train", 1, seed=77)[0])
    assert sys.argv == arguments
    assert random.getstate() == state


def test_idle_commands_can_be_hidden():
    scenes = Scenes(**SMALL)
    source = AlfworldSource(scenes=scenes, idle_commands=False)
    env = source.make()
    _, info = env.reset(source.tasks("train", 1)[0])
    assert info["admissible"]
    assert all(command.startswith("go to ") for command in info["admissible"])
    assert env.step("look")[0] != engine.NOTHING


def test_missing_package_is_named():
    program = (
        "import sys; sys.modules['alfworld'] = None\n"
        "from spark.envs import ENVS\n"
        "try: ENVS['alfworld']\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install spark-branching[alfworld]" in done.stdout


def test_registry():
    assert ENVS["alfworld"] is AlfworldSource
    with pytest.raises(ValueError, match="unknown environment 'alfwrold'; known: alfworld"):
        ENVS["alfwrold"]
