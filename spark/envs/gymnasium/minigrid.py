"""MiniGrid in words: what stands where, seen from the player."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import Env
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT, STATE_TO_IDX

from spark.envs.gymnasium.words import Words

COMMANDS = {
    "turn left": "left",
    "turn right": "right",
    "go forward": "forward",
    "pick up": "pickup",
    "drop": "drop",
    "toggle": "toggle",
}
SCENERY = {"unseen", "empty", "floor", "wall"}
STATES = {index: name for name, index in STATE_TO_IDX.items()}


class MiniGridWords(Words):
    """Things in view with the steps to them, what is carried, and how far it is to the wall."""

    def observation(self, observation: Any, env: Env) -> str:
        """Return the mission and the view, the player at the middle of its last row."""
        image = observation["image"]
        width, height, _ = image.shape
        middle, here = width // 2, height - 1
        seen = [
            f"a {_name(*image[x, y])} {_place(here - y, middle - x)}"
            for y in range(here, -1, -1)
            for x in range(width)
            if IDX_TO_OBJECT[int(image[x, y, 0])] not in SCENERY and (x, y) != (middle, here)
        ]
        # minigrid's own attributes, which gymnasium's class does not know
        carried = env.unwrapped.carrying  # type: ignore[attr-defined]
        holding = f"a {carried.color} {carried.type}" if carried else "nothing"
        view = ", ".join(seen) or "nothing of use"
        ahead = [IDX_TO_OBJECT[int(image[middle, y, 0])] for y in range(here - 1, -1, -1)]
        wall = f" A wall is {ahead.index('wall') + 1} ahead." if "wall" in ahead else ""
        return f"Your task: {observation['mission']}.\nYou hold {holding}. You see {view}.{wall}"

    def commands(self, env: Env) -> Mapping[str, Any]:
        """Return the six things that a player can do, whatever they lead to."""
        # as above
        known = env.unwrapped.actions  # type: ignore[attr-defined]
        return {command: known[name] for command, name in COMMANDS.items()}


def _name(kind: int, color: int, state: int) -> str:
    """Return e.g. "locked yellow door"."""
    thing = IDX_TO_OBJECT[int(kind)]
    how = f"{STATES[int(state)]} " if thing == "door" else ""
    return f"{how}{IDX_TO_COLOR[int(color)]} {thing}"


def _place(ahead: int, left: int) -> str:
    """Return e.g. "2 ahead and 1 left"."""
    side = f"{abs(left)} {'left' if left > 0 else 'right'}" if left else ""
    return " and ".join(part for part in (f"{ahead} ahead" if ahead else "", side) if part)
