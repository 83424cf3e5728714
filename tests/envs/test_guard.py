import pytest
from toy_envs import Corridor

from spark.envs.base import EnvError
from spark.envs.guard import Guard


@pytest.fixture
def env():
    guarded = Guard(Corridor())
    guarded.reset("corridor/train")
    return guarded


def test_exception_names_environment_task_and_step(env):
    env.step("right")
    with pytest.raises(EnvError, match=r"Corridor, task 'corridor/train', step 2: 'crash' raised"):
        env.fork().step("crash")


def test_non_text_is_refused(env):
    with pytest.raises(EnvError, match="step 1: returned int 7 as its observation"):
        env.step("number")


def test_wrong_number_of_values_is_refused():
    inner = Corridor()
    inner.begin = lambda task, seed: ("text", {})
    inner.act = lambda action: ("text", 0.0, False, False, {})
    guarded = Guard(inner)
    guarded.reset("anything")
    inner.step = lambda action: ("text", 0.0, False, {})
    with pytest.raises(EnvError, match="instead of 5 values"):
        guarded.step("left")


def test_a_reward_that_is_not_finite_is_refused(env):
    with pytest.raises(EnvError, match="step 1: returned nan as its reward"):
        env.step("unscored")


def test_place_survives_restore(env):
    snapshot = env.snapshot()
    env.step("right")
    env.restore(snapshot)
    with pytest.raises(EnvError, match="step 1: "):
        env.step("crash")


def test_unknown_task_stays_a_value_error():
    with pytest.raises(ValueError, match="unknown; use corridor"):
        Guard(Corridor()).reset("maze")
