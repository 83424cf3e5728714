"""Any Gymnasium environment: copied where that is exact, replayed where it is not."""

import os
import signal

import pytest
import random_policy

pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

from spark.envs import ENVS
from spark.envs.conformance import conform
from spark.envs.gymnasium import GymnasiumOptions
from spark.envs.gymnasium.source import GymnasiumSource
from spark.envs.pool import PooledSource


def own(name):
    ids = (f"spark/{name}-v0",)
    words = "spark.envs.gymnasium.words:Words"
    return GymnasiumSource(
        GymnasiumOptions(seen=ids, unseen=ids, other=ids, module="gym_envs", words=words)
    )


def test_minigrid_conforms_by_copies():
    source = GymnasiumSource()
    conform(source, steps=12)
    assert set(source._kinds.values()) == {"copy"}


@pytest.mark.parametrize(
    ("name", "kind"), [("Counter", "copy"), ("Locked", "replay"), ("Shared", "replay")]
)
def test_copies_are_used_where_they_are_exact(name, kind):
    env = own(name).make()
    assert env.fork_kind == "replay"
    env.reset(own(name).tasks("train", 1)[0])
    assert env.fork_kind == kind
    if name != "Shared":
        conform(own(name))


def test_text_passes_through():
    source = own("Echo")
    conform(source)
    env = source.make()
    text, info = env.reset(source.tasks("train", 1)[0])
    assert text == "Say stop." and info["admissible"] is None and len(info["examples"]) == 4
    text, reward, over, _, info = env.step("stop")
    assert (text, reward, over, info["won"]) == ("You said stop.", 1.0, True, True)


def test_minigrid_in_words_can_be_solved():
    """Follow the words alone through an empty room to the goal in its far corner."""
    ids = ("MiniGrid-Empty-5x5-v0",)
    source = GymnasiumSource(GymnasiumOptions(seen=ids))
    env = source.make()
    text, _ = env.reset(source.tasks("train", 1)[0])
    assert text.startswith("Your task: get to the green goal square.\nYou hold nothing.")
    assert "a green goal 2 ahead and 2 right" in text
    way = ["go forward", "go forward", "turn right", "go forward", "go forward"]
    said = [env.step(command) for command in way]
    assert "a green goal 2 ahead." in said[2][0]
    assert said[-1][1] > 0.5 and said[-1][2] and said[-1][4]["won"]
    assert not any(step[2] for step in said[:-1])


def test_things_are_carried_and_other_commands_do_nothing():
    source = GymnasiumSource()
    env = source.make()
    text, _ = env.reset("MiniGrid-DoorKey-5x5-v0/0")
    for _ in range(4):
        if "a yellow key 1 ahead" in text:
            break
        text = env.step("turn left")[0]
    assert env.step("fly")[:2] == ("Nothing happens.", 0.0)
    assert "You hold a yellow key." in env.step("pick up")[0]


def test_rollout_by_a_random_policy():
    source = GymnasiumSource()
    (tree,) = random_policy.roll(source, source.tasks("train", 1))
    assert tree.info["env_steps_replayed"] == 0


def test_killed_worker_is_replaced():
    source = GymnasiumSource()
    with PooledSource(source, workers=1) as pool:
        env = pool.make()
        env.reset(source.tasks("train", 1)[0])
        env.step("turn left")
        os.kill(pool.pids()[0], signal.SIGKILL)
        alone = source.make()
        alone.reset(source.tasks("train", 1)[0])
        alone.step("turn left")
        assert env.step("turn left") == alone.step("turn left")


def test_errors_name_the_remedy():
    assert ENVS["gymnasium"] is GymnasiumSource
    with pytest.raises(ValueError, match="unseen: 'Nowhere-v0' is not registered"):
        GymnasiumSource(GymnasiumOptions(unseen=("Nowhere-v0",)))
    with pytest.raises(ValueError, match="other is empty"):
        GymnasiumOptions(other=())
    with pytest.raises(ValueError, match="'Taxi' is no Gymnasium task"):
        GymnasiumSource().read("Taxi")
    with pytest.raises(ValueError, match="split: unknown 'dev'"):
        GymnasiumSource().tasks("dev", 1)
    source = own("Continuous")
    with pytest.raises(ValueError, match="has no words; give `words` a class"):
        source.make().reset(source.tasks("train", 1)[0])
