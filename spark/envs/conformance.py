"""What every environment must do. Its tests and `spark env check` run the same rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from spark.envs.base import Env, EnvError, EnvSource, RestoreError
from spark.envs.walk import Step, difference, follow, walk

UNKNOWN = "no-such-task"


def conform(source: EnvSource, *, split: str = "train", steps: int = 6) -> None:
    """Check the whole protocol on two tasks of `source`.

    Raises EnvError that says what the environment did and what it should have done.
    """
    first, second = _tasks(source, split)
    env = source.make()
    _need(isinstance(env, Env), f"{type(env).__name__} lacks a method of spark.envs.base.Env")
    fresh = source.make()
    try:
        _check_forks(env, first, second, steps)
        _check_from_start(env, fresh, first, steps)
        _check_unknown(fresh)
    finally:
        for one in (env, fresh):
            # twice on purpose: that is allowed
            one.close()
            one.close()


def _tasks(source: EnvSource, split: str) -> Sequence[str]:
    tasks = list(source.tasks(split, 2, 0))
    _need(tasks == list(source.tasks(split, 2, 0)), "tasks(split, 2, 0) differs when asked twice")
    _need(len(tasks) == 2 and tasks[0] != tasks[1], f"two different tasks expected, not {tasks}")
    return tasks


def _check_forks(env: Env, first: str, second: str, steps: int) -> None:
    """Forks and restored states go on as the original does, and nobody disturbs anybody."""
    rng = Random(0)
    text, info = env.reset(first, 0)
    _check_answer(text, info)
    exact = env.determinism == "exact"
    _need(env.fork_kind in ("state", "copy", "replay"), f"fork_kind is {env.fork_kind!r}")
    _need(env.determinism in ("exact", "reward_only"), f"determinism is {env.determinism!r}")
    before = walk(env, info, rng, steps)
    before = before[:-1] if before[-1].over else before
    for step in before:
        _check_step(step)
    env.reset(first, 0)
    _same(before, follow(env, before), exact, "after a second reset")
    info = before[-1].info if before else info
    snapshot = env.snapshot()
    child, bystander = env.fork(), env.fork()
    after = walk(env, info, rng, steps)
    _same(after, follow(child, after), exact, "in a fork")
    grandchild = bystander.fork()
    walk(bystander, info, Random(1), steps)
    _same(after, follow(grandchild, after), exact, "in a fork whose parent went another way")
    env.restore(snapshot)
    _same(after, follow(env, after), exact, "after restore")
    env.reset(second, 0)
    env.restore(snapshot)
    _same(after, follow(env, after), exact, "after another task and restore")
    for one in (child, bystander, grandchild):
        one.close()
        one.close()


def _check_from_start(env: Env, fresh: Env, task: str, steps: int) -> None:
    """A second environment of the same source repeats the first."""
    text, info = env.reset(task, 0)
    again, _ = fresh.reset(task, 0)
    exact = env.determinism == "exact"
    _need(not exact or text == again, f"reset gave {again!r} after {text!r}")
    trace = walk(env, info, Random(2), steps)
    _same(trace, follow(fresh, trace), exact, "in a new environment")


def _check_unknown(env: Env) -> None:
    try:
        env.reset(UNKNOWN, 0)
    except ValueError as error:
        _need(UNKNOWN in str(error), f"the error for an unknown task does not name it: {error}")
    else:
        raise EnvError(f"reset({UNKNOWN!r}) must raise ValueError")


def _check_step(step: Step) -> None:
    _check_answer(step.observation, step.info)
    finite = isinstance(step.reward, float) and math.isfinite(step.reward)
    _need(finite, f"the reward {step.reward!r} is no finite float")
    for name in ("terminated", "truncated"):
        value = getattr(step, name)
        _need(value is True or value is False, f"{name} is {value!r}, neither True nor False")


def _check_answer(text: str, info: dict[str, Any]) -> None:
    _need(isinstance(text, str) and bool(text), f"the observation is {text!r}, not text")
    _need(isinstance(info.get("won"), bool), 'info["won"] must be True or False')
    _need("admissible" in info, 'info["admissible"] is missing; None where any text is accepted')
    name = "examples" if info["admissible"] is None else "admissible"
    commands = info.get(name)
    listed = isinstance(commands, Sequence) and all(isinstance(each, str) for each in commands)
    _need(listed, f'info["{name}"] is {commands!r}, not a sequence of text')


def _same(before: list[Step], now: list[Step], exact: bool, where: str) -> None:
    found = difference(before, now, exact=exact)
    if found is not None:
        raise RestoreError(f"{where}, {found}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise EnvError(message)
