"""Between a Gymnasium environment and text: what to override for an environment of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import Env, spaces


class Words:
    """Observations by `str`, actions of a discrete space by name or number, text as it is."""

    def observation(self, observation: Any, env: Env) -> str:
        """Return `observation` as text."""
        return observation if isinstance(observation, str) else str(observation)

    def commands(self, env: Env) -> Mapping[str, Any] | None:
        """Return command -> action for the current state; None where any text is an action.

        Raises ValueError for a space whose actions have no words here.
        """
        space = env.action_space
        if isinstance(space, spaces.Text):
            return None
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"{env} has the action space {space}, which has no words; give `words` a class "
                "with a method `commands`"
            )
        first = int(space.start)
        named = getattr(env.unwrapped, "get_action_meanings", None)
        names = named() if named else map(str, range(first, first + int(space.n)))
        return {str(name).lower(): first + number for number, name in enumerate(names)}

    def examples(self, env: Env) -> Sequence[str]:
        """Return some commands of a state in which any text is an action."""
        return [str(env.action_space.sample()) for _ in range(4)]

    def won(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Return whether a step solved the task: here, whether it ended with a reward."""
        return bool(info.get("is_success", terminated and reward > 0))
