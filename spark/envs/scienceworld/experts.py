"""ScienceWorld's own solutions as demonstrations, with the steps that look for something marked."""

from __future__ import annotations

from collections.abc import Sequence

from spark.envs.expert import Episode, ExpertStep
from spark.envs.replay import words
from spark.envs.scienceworld.env import ScienceWorldEnv

FOCUS, DOOR = "focus on ", "open door "
SEARCHES = ("go to ", "teleport to ", "open ", "look ")


def demonstrate(env: ScienceWorldEnv, task: str, commands: Sequence[str]) -> Episode:
    """Play `commands`, which solve `task`, and return what was seen and done.

    They name things in their own way: each is replaced by the valid command for the same, or left
    out where it opens an open door. Where that does not solve the task they are taken literally.
    """
    fitted = _play(env, task, commands, fit=True)
    return fitted if fitted.won else _play(env, task, commands, fit=False)


def _play(env: ScienceWorldEnv, task: str, commands: Sequence[str], *, fit: bool) -> Episode:
    text, info = env.reset(task)
    episode = Episode(ending=text)
    seen: set[str] = set()
    for number, command in enumerate(commands):
        seen |= set(words(text))
        valid = list(info["admissible"])
        action = _fit(command, valid) if fit else command
        if action is None:
            continue
        goal = _goal(commands[number:])
        explorative = action.startswith(SEARCHES) and not set(words(goal)) <= seen
        verb = "find" if explorative else action.split()[0]
        episode.steps.append(ExpertStep(text, action, explorative, f"{verb} {goal}", tuple(valid)))
        text, _, terminated, _, info = env.step(action)
        if terminated:
            break
    episode.won, episode.ending = info["won"], text
    return episode


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
