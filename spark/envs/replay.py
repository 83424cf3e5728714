"""Forks for environments that cannot be copied: take the recorded actions again, and check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spark.envs.base import Determinism, Env, ForkKind, RestoreError

Info = dict[str, Any]


class Recorded(NamedTuple):
    """One step as it went."""

    action: str
    observation: str
    reward: float
    terminated: bool
    truncated: bool


@dataclass(kw_only=True, slots=True, frozen=True)
class Record:
    """Everything that leads to a state again, in any process.

    Example:
        Record(task="L0/0/3", seed=0, observation="You are in a room.", steps=(
            Recorded("open door", "It is open.", 0.0, False, False),))
    """

    task: str
    seed: int
    observation: str
    """The observation after `reset`."""
    steps: tuple[Recorded, ...] = field(default=())

    def then(self, step: Recorded) -> Record:
        """Return the record with one more step."""
        return Record(
            task=self.task,
            seed=self.seed,
            observation=self.observation,
            steps=(*self.steps, step),
        )

    def replay(self, env: Env) -> list[str]:
        """Bring `env` to the recorded state.

        Raises `RestoreError`, naming the first step that went differently: in reward or end, and
        in its text where the environment claims to be exact. Where it does not, the differences
        between the texts' words, whatever their order, are returned, one a step.
        """
        differences = []
        # what `info` holds may have to be found out by the environment, and nobody looks at it
        observation = env.reset(self.task, self.seed)[0]
        exact = env.determinism == "exact"

        def compare(number: int, before: str, now: str) -> None:
            if exact and before != now:
                raise RestoreError(self._difference(number, "text", before, now))
            if words(before) != words(now):
                differences.append(self._difference(number, "text", before, now))

        compare(0, self.observation, observation)
        for number, step in enumerate(self.steps, start=1):
            now = Recorded(step.action, *env.step(step.action)[:4])
            for what in ("reward", "terminated", "truncated"):
                if getattr(step, what) != getattr(now, what):
                    pair = getattr(step, what), getattr(now, what)
                    raise RestoreError(self._difference(number, what, *pair))
            compare(number, step.observation, now.observation)
        return differences

    def _difference(self, number: int, what: str, before: object, now: object) -> str:
        action = f"action {self.steps[number - 1].action!r}" if number else "reset"
        return (
            f"task {self.task!r} cannot be repeated: step {number} of {len(self.steps)} ({action}) "
            f"gave {what} {now!r}, but {before!r} was recorded"
        )


def words(text: str) -> list[str]:
    """Return the words of `text` in alphabetical order: what is left when its order is chance."""
    return sorted(re.findall(r"\w+", text))


class ReplayMixin:
    """Gives an environment that can only be reset and stepped the rest of the protocol.

    A subclass implements `begin` and `act` with the signatures of `reset` and `step`, `fresh` and
    `close`, and says in `determinism` what a repetition repeats.

    Example:
        class Dice(ReplayMixin):
            def begin(self, task, seed): ...
            def act(self, action): ...
            def fresh(self): return Dice()
    """

    fork_kind: ForkKind = "replay"
    determinism: Determinism = "exact"
    differences: Sequence[str] = ()
    """What the last restore repeated in other words, where only rewards are repeatable."""
    _record: Record | None = None

    def begin(self, task: str, seed: int) -> tuple[str, Info]:
        """Start `task` and return (observation, info)."""
        raise NotImplementedError

    def act(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Act and return (observation, reward, terminated, truncated, info)."""
        raise NotImplementedError

    def fresh(self) -> Env:
        """Return a new environment of the same kind, not yet reset."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the environment holds."""

    def reset(self, task: str, seed: int = 0) -> tuple[str, Info]:
        """Start `task` and its record."""
        observation, info = self.begin(task, seed)
        self._record = Record(task=task, seed=seed, observation=observation)
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Act and record what came of it."""
        record = self.snapshot()
        observation, reward, terminated, truncated, info = self.act(action)
        self._record = record.then(Recorded(action, observation, reward, terminated, truncated))
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> Record:
        """Return the record so far, valid in any process."""
        if self._record is None:
            raise ValueError("the environment was not reset yet; call reset(task) first")
        return self._record

    def restore(self, snapshot: Record) -> None:
        """Reset and take the recorded actions again. Raises `RestoreError`."""
        self.differences = snapshot.replay(self)

    def fork(self) -> Env:
        """Return a new environment brought to the same state. Raises `RestoreError`."""
        child = self.fresh()
        try:
            child.restore(self.snapshot())
        except BaseException:
            child.close()
            raise
        return child
