"""One trajectory in one Gymnasium environment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import gymnasium

from spark.envs.base import ForkKind
from spark.envs.gymnasium.options import TaskName
from spark.envs.gymnasium.words import Words
from spark.envs.replay import ReplayMixin
from spark.envs.walk import difference, follow, walk

PROOF_STEPS, PROOF_ATTEMPTS = 6, 20


class GymnasiumEnv(ReplayMixin):
    """Forks by `deepcopy` where that was proven exact for this kind of environment on the spot,
    and by a verified replay otherwise.
    """

    def __init__(
        self,
        read: Callable[[str], TaskName],
        words: Words,
        kinds: dict[str, ForkKind],
        fork_kind: ForkKind | None = None,
    ) -> None:
        """`kinds`: id -> how it forks, filled where an id is met first; `fork_kind`: not proven but
        given.
        """
        self._read, self._words, self._kinds = read, words, kinds
        self._given = fork_kind
        self._gym: gymnasium.Env | None = None
        self._actions: Any = {}
        self._id = ""

    # an attribute of the protocol that is read only; here it depends on the task
    @property
    def fork_kind(self) -> ForkKind:  # type: ignore[override]
        """How the environment that was last reset forks."""
        return self._given or self._kinds.get(self._id, "replay")

    def begin(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Start `task`; the seed changes nothing, the name has its own."""
        name = self._read(task)
        if self._given is None and name.id not in self._kinds:
            self._kinds[name.id] = "copy" if self._copies_exactly(task) else "replay"
        if self._gym is None or self._id != name.id:
            self.close()
            self._gym, self._id = gymnasium.make(name.id), name.id
        observation, _ = self._gym.reset(seed=name.seed)
        return self._words.observation(observation, self._gym), self._info(won=False)

    def act(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; a command that is not admissible is answered with "Nothing happens."."""
        assert self._gym is not None
        if self._actions is not None and action not in self._actions:
            return "Nothing happens.", 0.0, False, False, self._info(won=False)
        chosen = action if self._actions is None else self._actions[action]
        observation, reward, terminated, truncated, info = self._gym.step(chosen)
        won = self._words.won(float(reward), bool(terminated), info)
        text = self._words.observation(observation, self._gym)
        return text, float(reward), bool(terminated), bool(truncated), self._info(won=won)

    def fork(self) -> GymnasiumEnv:
        """Return a second environment in the same state."""
        if self.fork_kind == "replay":
            # the mixin's child is what `fresh` returns
            return super().fork()  # type: ignore[return-value]
        child = self.fresh()
        child._record, child._id = self.snapshot(), self._id
        child._gym = copy.deepcopy(self._gym)
        assert child._gym is not None
        child._actions = self._words.commands(child._gym)
        return child

    def fresh(self) -> GymnasiumEnv:
        """Return another environment of the same source."""
        return GymnasiumEnv(self._read, self._words, self._kinds, self._given)

    def close(self) -> None:
        """Close the Gymnasium environment."""
        if self._gym is not None:
            self._gym.close()
        self._gym = None

    def _info(self, *, won: bool) -> dict[str, Any]:
        assert self._gym is not None
        self._actions = self._words.commands(self._gym)
        if self._actions is None:
            return {"admissible": None, "examples": self._words.examples(self._gym), "won": won}
        return {"admissible": list(self._actions), "won": won}

    def _copies_exactly(self, task: str) -> bool:
        """Return whether deep copies go on as their originals do, and leave them alone."""
        env, twin = (GymnasiumEnv(self._read, self._words, {}, "copy") for _ in range(2))
        try:
            for attempt in range(PROOF_ATTEMPTS):
                _, info = env.reset(task)
                start = walk(env, info, Random(attempt), PROOF_STEPS)
                if not start[-1].over:
                    break
            else:
                return False
            twin.reset(task)
            if difference(start, follow(twin, start), exact=True):
                return False
            info = start[-1].info
            child, stray = env.fork(), twin.fork()
            walk(stray, info, Random(1), PROOF_STEPS)
            stray.close()
            tail = walk(env, info, Random(2), PROOF_STEPS)
            env.close()
            return all(not difference(tail, follow(one, tail), exact=True) for one in (child, twin))
        except Exception:
            # whatever a foreign environment does when it is copied: it is not exact
            return False
        finally:
            env.close()
            twin.close()
