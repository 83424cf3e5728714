"""Random walks: how environments are compared with themselves and measured."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from spark.envs.base import Env, EnvError, RestoreError
from spark.envs.replay import words

Info = dict[str, Any]
ATTEMPTS = 20


class Step(NamedTuple):
    """One step of a walk."""

    action: str
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Info

    @property
    def over(self) -> bool:
        """Whether the episode has ended with it."""
        return self.terminated or self.truncated


def choose(info: Info, rng: Random) -> str:
    """Return one of the commands that a state admits. Raises EnvError where it names none."""
    commands = info["examples"] if info["admissible"] is None else info["admissible"]
    if not commands:
        raise EnvError("a state that is not the last one admits no command")
    return rng.choice(commands)


def walk(env: Env, info: Info, rng: Random, steps: int) -> list[Step]:
    """Take up to `steps` random steps, fewer where the episode ends."""
    trace: list[Step] = []
    while len(trace) < steps and not (trace and trace[-1].over):
        action = choose(info, rng)
        trace.append(Step(action, *env.step(action)))
        info = trace[-1].info
    return trace


def follow(env: Env, trace: list[Step]) -> list[Step]:
    """Take the trace's actions again."""
    return [Step(step.action, *env.step(step.action)) for step in trace]


def descend(env: Env, info: Info, rng: Random, depth: int) -> list[Step]:
    """Take `depth` random steps, going back where one ends the episode.

    Returns fewer where every attempt at a step ends it.
    """
    trace: list[Step] = []
    for _ in range(depth):
        before = env.snapshot()
        for _ in range(ATTEMPTS):
            (step,) = walk(env, info, rng, 1)
            if not step.over:
                break
            env.restore(before)
        else:
            return trace
        trace.append(step)
        info = step.info
    return trace


def difference(before: list[Step], now: list[Step], *, exact: bool) -> str | None:
    """Return what `now` repeats differently, None where it repeats all that it must.

    `exact`: text, commands and all; otherwise rewards, ends and the words of the text.
    """
    for number, (a, b) in enumerate(zip(before, now, strict=True), start=1):
        for name in ("observation", "reward", "terminated", "truncated", "info"):
            one, other = getattr(a, name), getattr(b, name)
            if not exact and name == "info":
                continue
            if not exact and name == "observation":
                one, other = words(one), words(other)
            if one != other:
                return f"step {number} ({a.action!r}) gave {name} {other!r} after {one!r}"
    return None


def same_after(env: Env, twin: Env, info: Info, rng: Random, steps: int) -> str | None:
    """Walk on with `env`, follow with `twin`, and return how they differ, if they do."""
    try:
        trace = walk(env, info, rng, steps)
        return difference(trace, follow(twin, trace), exact=env.determinism == "exact")
    except RestoreError as error:
        return str(error)
