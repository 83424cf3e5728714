"""ScienceWorld in one Java virtual machine that all these tests share."""

import os
import pickle
import random
import re
import shutil
import signal
import time
from itertools import islice

import pytest
import random_policy

pytest.importorskip("scienceworld")

from spark.envs import ENVS
from spark.envs.base import EnvError
from spark.envs.conformance import conform
from spark.envs.pool import PooledSource
from spark.envs.scienceworld import ScienceWorldOptions
from spark.envs.scienceworld.jvm import Jvm, Simulator
from spark.envs.scienceworld.options import TaskName
from spark.envs.scienceworld.source import ScienceWorldSource
from spark.envs.walk import follow, walk

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")
FIND, LIVES = "find-plant/3@easy", "lifespan-longest-lived/0@easy"


@pytest.fixture(scope="module")
def source():
    with ScienceWorldSource(ScienceWorldOptions(simulators=8, spares=1)) as made:
        yield made


@needs_java
def test_conformance(source):
    conform(source, steps=3)


@needs_java
def test_texts_repeat_letter_by_letter(source):
    """Objects keep their order; with random identity hashes every second such walk differs."""
    env, twin = source.make(), source.make()
    for task in (FIND, LIVES, "boil/0@easy"):
        first, info = env.reset(task)
        assert twin.reset(task) == (first, info)
        trace = walk(env, info, random.Random(0), 12)
        assert follow(twin, trace) == trace
    env.close()
    twin.close()


@needs_java
def test_spares_are_loaded_for_forks_alone():
    with ScienceWorldSource(ScienceWorldOptions(simulators=8, spares=1)) as source:
        alone, other = source.make(), source.make()
        alone.reset(FIND)
        other.reset(LIVES)
        simulators = source._simulators
        assert simulators._wishes.empty() and not simulators._idle and not simulators._preparing
        child = alone.fork()
        until = time.monotonic() + 60
        while not simulators._ready(TaskName.parse(FIND)) and time.monotonic() < until:
            time.sleep(0.05)
        assert simulators._ready(TaskName.parse(FIND)) == 1
        assert not simulators._ready(TaskName.parse(LIVES))
        for env in (alone, other, child):
            env.close()
        assert not simulators._playing


@needs_java
def test_splits_are_the_official_ones(source):
    counts = {
        split: sum(len(variations[split]) for variations in source._variations.values())
        for split in ("train", "dev", "test")
    }
    # the sizes that the paper of ScienceWorld (arXiv 2203.07540) gives, as released in 1.2.3
    assert counts == {"train": 3592, "dev": 1796, "test": 1819}
    names = {split: set(source.tasks(split, 3000)) for split in ("train", "L0", "L1", "L2")}
    kinds = {split: {TaskName.parse(name).kind for name in found} for split, found in names.items()}
    assert kinds["train"] == kinds["L0"] == kinds["L1"] == set(source.options.tasks)
    assert kinds["L2"] == set(source.options.held_out)
    assert not (names["train"] & names["L0"] or names["L0"] & names["L1"])
    assert source.tasks("L1", 5, seed=3) == source.tasks("L1", 5, seed=3)
    assert source.tasks("L1", 5, seed=3) != source.tasks("L1", 5, seed=4)


@needs_java
def test_gold_path_scores_one(source):
    episode = source.expert(FIND)
    assert episode.won
    assert all(step.action in step.admissible for step in episode.steps)
    assert any(step.explorative for step in episode.steps)
    assert not episode.steps[-1].explorative
    env = source.make()
    text, info = env.reset(FIND)
    assert text == episode.steps[0].observation
    first, total = info["score"], 0.0
    for step in episode.steps:
        assert not info["won"]
        _, reward, terminated, truncated, info = env.step(step.action)
        total += reward
    assert (terminated, truncated, info["won"], info["score"]) == (True, False, True, 1.0)
    assert total == pytest.approx(1.0 - first)
    env.close()


@needs_java
def test_experts_make_detours_and_stop_in_time(source):
    (straight,) = source.experts([LIVES], max_steps=50, seed=0, detours=0.0)
    (detour,) = source.experts([LIVES], max_steps=50, seed=0, detours=0.4)
    (short,) = source.experts([LIVES], max_steps=1, seed=0, detours=0.0)
    assert straight == source.expert(LIVES)
    way = [step.action for step in straight.steps]
    longer = [step.action for step in detour.steps]
    assert detour.won and len(longer) > len(way)
    assert [action for action in longer if action in way or not action.startswith("look ")] == way
    assert len(short.steps) == 1 and not short.won


@needs_java
def test_vocabulary_covers_every_room(source):
    kinds, *texts = islice(source.texts(0), 12)
    assert "Pollen" in kinds
    rooms = {re.search(r"is called the ([\w ]+)", text)[1] for text in texts}
    assert {"kitchen", "greenhouse", "workshop", "foundry"} <= rooms
    assert all("focus on" in text for text in texts)


@needs_java
@pytest.mark.slow
def test_cold_start(tmp_path):
    """From the official solutions to a policy and its tokenizer."""
    from spark.recipes import RECIPES
    from spark.recipes.cold_start import sft
    from spark.recipes.config import ModelConfig
    from spark.recipes.policy import load_policy

    start = sft(RECIPES["scienceworld_smoke"](), tmp_path / "start")
    _, words = load_policy(ModelConfig(path=str(start)))
    assert words.unk_token_id not in words.encode("<action> focus on living thing </action>")


@needs_java
def test_wrong_focus_fails_for_good(source):
    env = source.make()
    env.reset(FIND)
    _, reward, terminated, _, info = env.step("focus on agent")
    assert terminated and not info["won"]
    assert reward < -1.0 and info["score"] == -1.0
    env.close()


@needs_java
def test_commands_are_found_out_on_demand(source, monkeypatch):
    asked = []
    commands = Simulator.commands
    monkeypatch.setattr(Simulator, "commands", lambda self: asked.append(1) or commands(self))
    env = source.make()
    env.reset(FIND)
    for _ in range(3):
        env.step("look around")
    child = env.fork()
    assert asked == []
    listed = env.step("look around")[-1]["admissible"]
    assert "look around" in listed and listed == list(listed) and len(listed) == len(list(listed))
    assert len(asked) == 1
    assert pickle.loads(pickle.dumps(listed)) == list(listed)
    # a list that somebody keeps outlives its state
    kept = env.step("go to kitchen")[-1]["admissible"]
    env.step("look around")
    unseen = env.step("look around")[-1]["admissible"]
    env.close()
    assert len(asked) == 3
    assert "close door to hallway" in list(kept)
    assert "close door to hallway" in list(unseen)
    assert "close door to hallway" not in list(listed)
    child.close()


@needs_java
def test_simulators_are_bounded_and_come_back(source):
    envs = [source.make() for _ in range(8)]
    for env in envs:
        env.reset(FIND)
    late = source.make()
    with pytest.raises(EnvError, match="all simulators=8 are in use; raise simulators"):
        late.reset(FIND)
    envs[0].close()
    late.reset(FIND)
    # one that is forgotten gives its simulator back too
    del envs[1], env
    source.make().reset(FIND)
    for each in (*envs, late):
        each.close()


@needs_java
def test_rollout_by_a_random_policy(source):
    (tree,) = random_policy.roll(source, [FIND])
    assert tree.info["env_steps_replayed"] > 0
    assert tree.info["replay_differences"] == []


@needs_java
def test_killed_worker_is_replaced_with_its_virtual_machine(source):
    with PooledSource(source, workers=1) as pool:
        env = pool.make()
        env.reset(FIND)
        before = env.step("go to kitchen")[0]
        os.kill(pool.pids()[0], signal.SIGKILL)
        again = env.step("look around")[0]
        assert "kitchen" in before and "This room is called the kitchen" in again
        assert env.differences == []


def test_names_and_errors(monkeypatch):
    assert ENVS["scienceworld"] is ScienceWorldSource
    assert str(TaskName.parse(FIND)) == FIND
    with pytest.raises(ValueError, match="'find-plant' is none of ScienceWorld"):
        TaskName.parse("find-plant")
    with pytest.raises(ValueError, match="held_out: 'boil' is among tasks too"):
        ScienceWorldOptions(tasks=("boil",), held_out=("boil",))
    with pytest.raises(ValueError, match="simulators=0 must be at least 1"):
        ScienceWorldOptions(simulators=0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvError, match="apt-get install -y openjdk-17-jre-headless"):
        Jvm(1)


@needs_java
def test_unknown_names_are_refused(source):
    with pytest.raises(ValueError, match="unknown task type 'find-stone'; choose among boil"):
        source.read("find-stone/0@easy")
    with pytest.raises(ValueError, match="find-plant has no variation 9000"):
        source.read("find-plant/9000@easy")
    with pytest.raises(ValueError, match="other simplifications than this source's"):
        source.read("find-plant/0@")
    with pytest.raises(ValueError, match="split: unknown 'dev'"):
        source.tasks("dev", 1)
