"""Forks for environments that cannot be copied: take the recorded actions again, and check."""

from __future__ import annotations

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

    def replay(self, env: Env) -> Info:
        """Bring `env` to the recorded state and return the last info.

        Raises `RestoreError`, naming the first step that went differently: in reward or end, and
        in its text where the environment claims to be exact.
        """
        exact = env.determinism == "exact"
        observation, info = env.reset(self.task, self.seed)
        if exact and observation != self.observation:
            raise RestoreError(self._difference(0, "text", self.observation, observation))
        for number, step in enumerate(self.steps, start=1):
            observation, reward, terminated, truncated, info = env.step(step.action)
            pairs: list[tuple[str, object, object]] = [
                ("reward", step.reward, reward),
                ("terminated", step.terminated, terminated),
                ("truncated", step.truncated, truncated),
            ]
            if exact:
                pairs.append(("text", step.observation, observation))
            for what, before, now in pairs:
                if before != now:
                    raise RestoreError(self._difference(number, what, before, now))
        return info

    def _difference(self, number: int, what: str, before: object, now: object) -> str:
        action = f"action {self.steps[number - 1].action!r}" if number else "reset"
        return (
            f"task {self.task!r} cannot be repeated: step {number} of {len(self.steps)} ({action}) "
            f"gave {what} {now!r}, but {before!r} was recorded"
        )


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
        snapshot.replay(self)

    def fork(self) -> Env:
        """Return a new environment brought to the same state. Raises `RestoreError`."""
        child = self.fresh()
        try:
            child.restore(self.snapshot())
        except BaseException:
            child.close()
            raise
        return child
