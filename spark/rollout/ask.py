"""Questions to environments that may answer later, too late, or not in text."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from spark.engines.base import Engine
from spark.envs.base import Env


async def ask(env: Env, name: str, *args: Any, seconds: float) -> Any:
    """Call a method of `env`; its `<name>_async` form, where there is one, gets a time limit.

    Raises TimeoutError after `seconds`; a call without that form cannot be interrupted.
    """
    slow = getattr(env, f"{name}_async", None)
    if slow is None:
        return getattr(env, name)(*args)
    try:
        # not wait_for: on Python 3.11 it swallows a cancellation that comes with the answer
        async with asyncio.timeout(seconds):
            return await slow(*args)
    except TimeoutError as error:
        raise TimeoutError(f"the environment's {name} took over {seconds} s") from error


async def free(engine: Engine, env: Env | None, seq: int | None) -> None:
    """Release a sequence and close an environment, each whatever becomes of the other."""
    try:
        if seq is not None:
            await engine.release(seq)
    finally:
        if env is not None:
            env.close()


def text_of(observation: Any) -> str:
    """Return `observation`, which must be text. Raises TypeError otherwise."""
    if not isinstance(observation, str):
        kind = type(observation).__name__
        raise TypeError(f"the environment returned {kind} as its observation, not text")
    return observation


def reward_of(reward: Any) -> float:
    """Return `reward`, which must be a finite number. Raises ValueError otherwise."""
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"the environment returned {reward!r:.40} as its reward, not a finite number: let its "
            "step return 0.0 where there is none"
        )
    return number
