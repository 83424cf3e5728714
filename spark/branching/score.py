"""Branching where a score of the state is high: novelty, or whatever a user's function says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import isawaitable, iscoroutinefunction

from spark.branching import SCORES
from spark.branching.base import Decision, State
from spark.novelty import novelties

Score = Callable[[State], float | Awaitable[float]]


@dataclass(kw_only=True, frozen=True)
class ScoreRule:
    """Somebody else proposes where to explore (LLM-Explorer's seam).

    `score` names an entry of SCORES or a function "module:name" of the state, plain or async: a
    second model, a value estimate, the distance to a subgoal. Raises ValueError for an unknown
    one. An async function does not hold up other trajectories; a plain one does.
    """

    width: int = 2
    score: str = "novelty"
    score_above: float = 5.0
    watch = None

    def __post_init__(self) -> None:
        find_score(self.score)

    def decide(self, state: State) -> Decision:
        """Branch when the score lies above the threshold. Raises ValueError for an async score."""
        score = find_score(self.score)
        if iscoroutinefunction(score):
            raise ValueError(f"score={self.score!r} is async, which only a rollout can wait for")
        value = score(state)
        assert not isawaitable(value)
        return self._decision(value)

    async def decide_async(self, state: State) -> Decision:
        """Return the same, waiting for the score where it is async."""
        value = find_score(self.score)(state)
        return self._decision(await value if isawaitable(value) else value)

    def _decision(self, value: float) -> Decision:
        chosen = value > self.score_above
        return Decision(width=self.width, trigger="score") if chosen else Decision()


def find_score(name: str) -> Score:
    """Return the score called `name`, or the function at "module:name"."""
    if ":" not in name:
        score: Score = SCORES[name]
        return score
    module, _, attribute = name.partition(":")
    try:
        found: Score = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"score={name!r} cannot be imported ({error}); give module:name") from None
    return found


def state_novelty(state: State) -> float:
    """Return how little the last observation resembles the earlier ones of the path."""
    return novelties([observation.split() for observation in state.observations])[-1]
