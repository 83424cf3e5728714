"""The turnstile: whatever the order of arrival, answers are given in the order of places."""

from __future__ import annotations

import asyncio
import random

import pytest

from spark.rollout.turnstile import Turnstile


@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_the_places(seed: int) -> None:
    choose = random.Random(seed)
    turnstile = Turnstile()
    answered: list[tuple[int, int]] = []

    async def walk(who: int) -> None:
        for turn in range(5):
            turnstile.move(who, turn, (who,))
            for _ in range(choose.randrange(6)):
                await asyncio.sleep(0)
            if choose.random() < 0.5:
                await turnstile.first(who)
                answered.append((turn, who))
        turnstile.leave(who)

    async def main() -> None:
        for who in range(4):
            turnstile.move(who, 0, (who,))
        await asyncio.gather(*(walk(who) for who in range(4)))

    asyncio.run(asyncio.wait_for(main(), 5))
    assert answered == sorted(answered)
    assert len(answered) > 3


def test_children_come_before_those_their_parent_came_before() -> None:
    turnstile = Turnstile()
    answered: list[str] = []

    async def late() -> None:
        await turnstile.first("late")
        answered.append("late")

    async def main() -> None:
        turnstile.move("parent", 2, (0,))
        turnstile.move("late", 2, (1,))
        job = asyncio.create_task(late())
        await asyncio.sleep(0)
        turnstile.move("child", 2, (0, 1))
        turnstile.move("parent", 3, (0, 0))
        await asyncio.sleep(0)
        assert not answered
        await turnstile.first("child")
        answered.append("child")
        turnstile.leave("child")
        await job

    asyncio.run(asyncio.wait_for(main(), 5))
    assert answered == ["child", "late"]
