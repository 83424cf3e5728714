"""ScienceWorld's own solutions as demonstrations, with the steps that look for something marked."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from spark.envs.expert import Episode, ExpertStep
from spark.envs.replay import words
from spark.envs.scienceworld.env import ScienceWorldEnv
from spark.seeds import derive_seed

FOCUS, DOOR = "focus on ", "open door "
SEARCHES = ("go to ", "teleport to ", "open ", "look ")


def demonstrate(
    env: ScienceWorldEnv,
    task: str,
    commands: Sequence[str],
    *,
    max_steps: int = 100,
    detours: float = 0.0,
    seed: int = 0,
) -> Episode:
    """Play `commands`, which solve `task`, and return what was seen and done.

    They name things in their own way: each is replaced by the valid command for the same, or left
    out where it opens an open door. Where that does not solve the task they are taken literally.
    A detour looks at something before the next command; where the time that takes is what makes the
    episode fail, it is played without.
    """
    for fit, share in ((True, detours), (True, 0.0), (False, 0.0)):
        player = _Player(env, task, max_steps)
        rng = Random(derive_seed(seed, task))
        for number, command in enumerate(commands):
            action = _fit(command, player.valid) if fit else command
            goal = _goal(commands[number:])
            looks = [each for each in player.valid if each.startswith("look ")]
            while looks and rng.random() < share:
                player.take(rng.choice(looks), goal)
            if action is not None:
                player.take(action, goal)
        if player.episode.won:
            break
    return player.episode


class _Player:
    """Plays an episode and writes it down."""

    def __init__(self, env: ScienceWorldEnv, task: str, max_steps: int) -> None:
        self._env, self._max_steps = env, max_steps
        text, info = env.reset(task)
        self.episode = Episode(ending=text)
        self.valid = tuple(info["admissible"])
        self._seen = set(words(text))
        self._over = False

    def take(self, action: str, goal: str) -> None:
        """Act, unless the episode is over; `goal` is the thing that the expert is after."""
        if self._over:
            return
        explorative = action.startswith(SEARCHES) and not set(words(goal)) <= self._seen
        verb = "find" if explorative else action.split(maxsplit=1)[0]
        text = self.episode.ending
        step = ExpertStep(text, action, explorative, f"{verb} {goal}", self.valid)
        self.episode.steps.append(step)
        text, _, terminated, _, info = self._env.step(action)
        self.episode.ending, self.episode.won = text, info["won"]
        self._seen |= set(words(text))
        self._over = terminated or len(self.episode.steps) >= self._max_steps
        self.valid = () if self._over else tuple(info["admissible"])


def _fit(command: str, valid: Sequence[str]) -> str | None:
    """Return the valid command that does the same as `command`, None for a door that is open."""
    if command in valid:
        return command
    if command.startswith(DOOR):
        return None
    (verb, *named), where = _thing(command)
    # the valid names are shorter, e.g. "flower pot" for "flower pot 4 containing soil in inventory"
    shorter = [
        other
        for other in valid
        if _thing(other)[1] == where
        and _thing(other)[0][0] == verb
        and set(_thing(other)[0][1:]) <= set(named)
    ]
    if not shorter:
        return command
    return max(shorter, key=lambda other: (len(other.split()), -command.find(other.split()[1])))


def _thing(command: str) -> tuple[list[str], str]:
    """Return the words up to the last " to " and what follows it."""
    thing, to, where = command.rpartition(" to ")
    return (thing.split(), where) if to else (command.split(), "")


def _goal(commands: Sequence[str]) -> str:
    """Return the thing that the player is after: what it focuses on next, or last acts upon."""
    for command in commands:
        if command.startswith(FOCUS):
            return command.removeprefix(FOCUS)
    return " ".join(commands[-1].split()[1:])
