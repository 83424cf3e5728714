import pytest
from toy_envs import DRIFTS, CorridorSource

from spark.envs.base import RestoreError
from spark.envs.conformance import conform


def test_conformance():
    conform(CorridorSource())


def test_step_before_reset():
    with pytest.raises(ValueError, match="call reset"):
        CorridorSource().make().step("left")


@pytest.mark.parametrize("way", ["restore", "fork"])
def test_difference_in_text_is_named(way):
    env = CorridorSource().make()
    env.reset("corridor")
    for action in ("right", "drift", "left"):
        env.step(action)
    DRIFTS.append(1)
    with pytest.raises(RestoreError, match=r"step 2 of 3 \(action 'drift'\) gave text 'place 1,"):
        env.fork() if way == "fork" else env.restore(env.snapshot())


def test_reward_only_accepts_other_text_but_no_other_reward():
    env = CorridorSource("reward_only").make()
    env.reset("corridor")
    env.step("drift")
    env.restore(env.snapshot())
    env.step("luck")
    DRIFTS.append(1)
    with pytest.raises(RestoreError, match=r"step 2 of 2 \(action 'luck'\) gave reward"):
        env.fork()


def test_difference_at_reset_is_named():
    env = CorridorSource().make()
    env.reset("corridor a")
    record = env.snapshot()
    env.begin = lambda task, seed: ("elsewhere", {})
    with pytest.raises(RestoreError, match=r"step 0 of 0 \(reset\) gave text 'elsewhere'"):
        env.restore(record)


def test_other_words_are_counted_and_named():
    env = CorridorSource("reward_only").make()
    env.reset("corridor")
    for action in ("right", "drift", "left"):
        env.step(action)
    DRIFTS.append(1)
    (told,) = env.fork().differences
    assert "step 2 of 3 (action 'drift') gave text 'place 1," in told
    env.restore(env.snapshot())
    assert len(env.differences) == 1


def test_order_of_words_is_no_difference():
    env = CorridorSource("reward_only").make()
    env.reset("corridor a, b")
    env.begin = lambda task, seed: ("b, corridor 0 place a", {})
    env.restore(env.snapshot())
    assert env.differences == []
