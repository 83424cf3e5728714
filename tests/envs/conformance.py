"""What every environment must do; `check(source)` is called by each environment's tests."""

import random

import pytest

from spark.envs.base import Env


def walk(env, info, rng, steps):
    """Return the trace of a random walk from the current state."""
    trace = []
    for _ in range(steps):
        action = rng.choice(info["admissible"])
        observation, reward, terminated, truncated, info = env.step(action)
        trace.append((action, observation, reward, terminated, truncated, info))
    return trace


def repeat(env, trace):
    """Take the trace's actions again."""
    return [(step[0], *env.step(step[0])) for step in trace]


def comparable(trace, determinism):
    if determinism == "exact":
        return trace
    return [(action, reward, over, cut) for action, _, reward, over, cut, _ in trace]


def check(source, *, split="train", steps=6):
    """Check the whole protocol on two tasks of `source`."""
    first, second = source.tasks(split, 2, seed=0)
    assert [first, second] == list(source.tasks(split, 2, seed=0))
    assert first != second
    env, rng = source.make(), random.Random(0)
    assert isinstance(env, Env)
    text, info = env.reset(first)
    assert env.fork_kind in ("state", "copy", "replay")
    assert env.determinism in ("exact", "reward_only")
    check_observation(text, info)
    same_text, same_info = env.reset(first)
    if env.determinism == "exact":
        assert (same_text, same_info) == (text, info)

    def same(a, b):
        assert comparable(a, env.determinism) == comparable(b, env.determinism)

    before = walk(env, info, rng, steps)
    for _, observation, reward, terminated, truncated, info in before:
        check_observation(observation, info)
        assert isinstance(reward, float)
        assert terminated in (True, False)
        assert truncated in (True, False)
    snapshot = env.snapshot()
    child, bystander = env.fork(), env.fork()
    after = walk(env, info, rng, steps)
    same(after, repeat(child, after))
    grandchild = bystander.fork()
    walk(bystander, info, random.Random(1), steps)
    same(after, repeat(grandchild, after))
    env.restore(snapshot)
    same(after, repeat(env, after))
    env.reset(second)
    env.restore(snapshot)
    same(after, repeat(env, after))
    fresh = source.make()
    fresh.reset(first)
    same(before + after, repeat(fresh, before + after))
    with pytest.raises(ValueError, match="no-such-task"):
        fresh.reset("no-such-task")
    for one in (env, child, bystander, grandchild, fresh):
        one.close()
        one.close()


def check_observation(text, info):
    assert isinstance(text, str)
    assert text
    assert isinstance(info["won"], bool)
    assert isinstance(info["admissible"], list)
    assert all(isinstance(command, str) for command in info["admissible"])
