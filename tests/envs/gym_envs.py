"""Gymnasium environments that deep copies get wrong, and one that speaks."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import gymnasium
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Count to the target by adding one or two."""

    def __init__(self) -> None:
        self.action_space = spaces.Discrete(2, start=1)
        self.observation_space = spaces.Discrete(100)
        self.place = [0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.place[0] = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        self.place[0] += int(action) + int(self.np_random.integers(3))
        over = self.place[0] >= 90
        return self.place[0], float(over), over, False, {}


class Locked(Counter):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Shared(Counter):
    """Keeps its state where copies share it."""

    everywhere: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.place = self.everywhere

    def __deepcopy__(self, memo: dict) -> Shared:
        return Shared()


class Echo(gymnasium.Env):
    """Says what it was told and ends with the word "stop"."""

    def __init__(self) -> None:
        self.action_space = spaces.Text(6, charset="abcdef")
        self.observation_space = spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.action_space.seed(seed)
        return "Say stop.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        return f"You said {action}.", float(action == "stop"), action == "stop", False, {}


class Continuous(Counter):
    """Has actions without words."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(0, 1)


for kind in (Counter, Locked, Shared, Echo, Continuous):
    gymnasium.register(f"spark/{kind.__name__}-v0", kind)
