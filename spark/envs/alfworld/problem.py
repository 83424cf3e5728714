"""Writes a scene and a goal in ALFWorld's own planning language."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alfworld.gen.goal_library import gdict
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

from spark.envs.alfworld.floorplans import AFFORDANCES, CONTAINERS, FIXED, fits, kind, openable

GOAL_SLOT = "UNKNOWN GOAL"
SPELLINGS = {"|": "bar", "+": "plus", "-": "minus", ".": "dot", ",": "comma"}


class GameData(NamedTuple):
    """One game as the engine and the experts need it."""

    domain: str
    grammar: str
    """ALFWorld's grammar with `GOAL_SLOT` where the goal's description stands."""
    problem: str
    goal: str
    task_type: str
    params: dict[str, str]
    """ALFRED's `pddl_params`: object_target, parent_target, toggle_target..."""
    floor_plan: int


class Goal(NamedTuple):
    """What is asked for: an object name, and where it ends or which lamp it is looked at under."""

    task_type: str
    target: str
    parent: str = ""
    lamp: str = ""

    def wordings(self) -> list[str]:
        """Return the ways ALFWorld puts the goal into words."""
        words = {"obj": self.target, "recep": self.parent, "toggle": self.lamp, "mrecep": ""}
        lower = {slot: word.lower() for slot, word in words.items()}
        return [template.format(**lower) for template in gdict[self.task_type]["templates"]]


@dataclass(slots=True)
class Scene:
    """Receptacles with their places, and objects with their receptacles."""

    floor_plan: int
    start: str
    """Location id of the agent."""
    receptacles: dict[str, str]
    """Receptacle id -> location id."""
    objects: list[tuple[str, str, str]] = field(default_factory=list)
    """(object id, object name, receptacle id)."""


def write(scene: Scene, goal: Goal, wording: str) -> GameData:
    """Return the game in which `goal`, described by `wording`, is set in `scene`."""
    pddl = gdict[goal.task_type]["pddl"]
    filled = pddl.format(obj=goal.target, recep=goal.parent, toggle=goal.lamp, mrecep="")
    lines = ["(define (problem generated)", "(:domain alfred)", "(:objects", *_objects(scene)]
    lines += [")", "(:init", *_facts(scene), ")", filled.replace("#", "-")]
    return GameData(
        domain=_text(ALFRED_PDDL_PATH),
        grammar=_text(ALFRED_TWL2_PATH),
        problem="\n".join(lines),
        goal=wording,
        task_type=goal.task_type,
        params={
            "object_target": goal.target,
            "parent_target": goal.parent,
            "toggle_target": goal.lamp,
        },
        floor_plan=scene.floor_plan,
    )


def _objects(scene: Scene) -> list[str]:
    """Return the declarations of everything the problem names."""
    # the domain's actions refer to some types by name
    names = {name for _, name, _ in scene.objects} | {"Knife", "ButterKnife"}
    kinds = {kind(receptacle) for receptacle in scene.receptacles}
    kinds |= {"Microwave", "Fridge", "SinkBasin"}
    locations = {*scene.receptacles.values(), scene.start}
    return [
        "agent1 - agent",
        *(f"{_mangle(location)} - location" for location in sorted(locations)),
        *(f"{_mangle(receptacle)} - receptacle" for receptacle in scene.receptacles),
        *(f"{_mangle(identity)} - object" for identity, _, _ in scene.objects),
        *(f"{name}Type - otype" for name in sorted(names)),
        *(f"{kind}Type - rtype" for kind in sorted(kinds)),
    ]


def _facts(scene: Scene) -> list[str]:
    """Return the facts of the initial state."""
    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {_mangle(scene.start)})"]
    for receptacle, location in scene.receptacles.items():
        mangled = _mangle(receptacle)
        facts.append(f"(receptacleType {mangled} {kind(receptacle)}Type)")
        facts.append(f"(receptacleAtLocation {mangled} {_mangle(location)})")
        if openable(receptacle):
            facts.append(f"(openable {mangled})")
    facts += _capacities(
        names={name for _, name, _ in scene.objects},
        kinds={kind(receptacle) for receptacle in scene.receptacles},
    )
    for identity, name, receptacle in scene.objects:
        mangled = _mangle(identity)
        facts.append(f"(objectType {mangled} {name}Type)")
        facts.append(f"(inReceptacle {mangled} {_mangle(receptacle)})")
        facts.append(f"(objectAtLocation {mangled} {_mangle(scene.receptacles[receptacle])})")
        facts += [f"({word} {mangled})" for word in _properties(name)]
    return facts


def _capacities(names: Collection[str], kinds: Collection[str]) -> list[str]:
    """Return which kinds of receptacles may hold which objects."""
    return [
        f"(canContain {kind}Type {name}Type)"
        for kind in sorted(kinds)
        for name in sorted(names)
        if fits(name, kind)
    ]


def _properties(name: str) -> list[str]:
    """Return the predicates of what can be done with objects called `name`."""
    words = [word.lower() for word, names in AFFORDANCES.items() if name in names]
    words += [] if name in FIXED else ["pickupable"]
    return words + (["isReceptacleObject"] if name in CONTAINERS else [])


def _mangle(identity: str) -> str:
    """Return an id spelt as the planning language allows; ALFWorld's Demangler undoes it."""
    for character, word in SPELLINGS.items():
        identity = identity.replace(character, f"_{word}_")
    return identity


@cache
def _text(path: str) -> str:
    return Path(path).read_text()
