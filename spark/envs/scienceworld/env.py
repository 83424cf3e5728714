"""One trajectory in one simulator."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from spark.envs.base import Determinism
from spark.envs.replay import ReplayMixin
from spark.envs.scienceworld.jvm import Simulator
from spark.envs.scienceworld.options import TaskName
from spark.envs.scienceworld.simulators import Simulators


class ScienceWorldEnv(ReplayMixin):
    """A simulator on loan. The rewards of an episode add up to the final score, from -1 (the wrong
    thing was focused on) over parts of the task to 1 (solved), less what the first look earned.

    A fork is a simulator at the start that repeats the actions. Listing the valid commands is not
    repeated (it takes ten times as long as a step), and as the simulator's chance is not quite
    independent of it, only rewards and ends are promised.
    """

    determinism: Determinism = "reward_only"

    def __init__(self, simulators: Simulators, read: Callable[[str], TaskName]) -> None:
        """`read` turns a task's name into its parts, or raises ValueError."""
        self._simulators, self._read = simulators, read
        self._simulator: Simulator | None = None
        self._commands: weakref.ref[Commands] | None = None
        self._score = 0.0

    def begin(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Start `task`; the seed changes nothing, the name fixes everything."""
        name = self._read(task)
        self.close()
        self._simulator = self._simulators.take(name)
        # also when nobody closes the environment
        self._give = weakref.finalize(self, self._simulators.give, self._simulator)
        self._score = self._simulator.score()
        return self._simulator.start, self._info(won=False)

    def act(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; the environment has no horizon of its own: nothing is ever truncated."""
        assert self._simulator is not None
        self._leave()
        outcome = self._simulator.step(action)
        reward, self._score = outcome.score - self._score, outcome.score
        info = self._info(won=outcome.over and outcome.score >= 1.0)
        return outcome.text, reward, outcome.over, False, info

    def fresh(self) -> ScienceWorldEnv:
        """Return another environment of the same simulators."""
        return ScienceWorldEnv(self._simulators, self._read)

    def close(self) -> None:
        """Give the simulator back."""
        if self._simulator is not None:
            self._leave()
            self._give()
        self._simulator = self._commands = None

    def _leave(self) -> None:
        """Let whoever still holds the commands of this state have them before it is gone."""
        commands = self._commands() if self._commands is not None else None
        if commands is not None and not self._simulators.closed:
            commands.known()

    def _info(self, *, won: bool) -> dict[str, Any]:
        assert self._simulator is not None
        commands = Commands(self._simulator.commands)
        self._commands = weakref.ref(commands)
        return {"admissible": commands, "won": won, "score": self._score}


class Commands(Sequence[str]):
    """The valid commands of a state, found out when somebody looks at them."""

    def __init__(self, ask: Callable[[], list[str]]) -> None:
        self._ask = ask
        self._known: list[str] | None = None

    def known(self) -> list[str]:
        """Return them as a list."""
        if self._known is None:
            self._known = self._ask()
        return self._known

    def __len__(self) -> int:
        return len(self.known())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.known()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.known() == list(other)

    # like a list; the base class promises a hash
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # what travels to another process is the list itself
        return list, (self.known(),)
