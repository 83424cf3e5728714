import asyncio

import pytest

from spark.rollout.ask import ask


class Slow:
    """Answers when told to."""

    def __init__(self):
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def step_async(self, action):
        self.asked.set()
        await self.answer.wait()
        return action


def test_a_cancellation_that_comes_with_the_answer_is_not_swallowed():
    async def cancelled_after(iterations):
        env = Slow()
        asking = asyncio.create_task(ask(env, "step", "go", seconds=10.0))
        await env.asked.wait()
        env.answer.set()
        for _ in range(iterations):
            await asyncio.sleep(0)
        if not asking.done():
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    for iterations in range(6):
        asyncio.run(cancelled_after(iterations))


def test_an_answer_that_takes_too_long_is_named():
    async def asked():
        await ask(Slow(), "step", "go", seconds=0.01)

    with pytest.raises(TimeoutError, match=r"the environment's step took over 0.01 s"):
        asyncio.run(asked())
