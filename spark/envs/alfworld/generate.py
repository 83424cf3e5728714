"""Samples scenes over ALFWorld's floor plans and writes them in ALFWorld's own planning language.

The pieces (domain, grammar, goals, affordances, floor plans) come from the installed `alfworld`
package; nothing of it is copied into this project.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import alfworld.gen.constants as tables
from alfworld.gen.goal_library import gdict
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

from spark.envs.alfworld.scenes import Scenes, TaskName

UNSEEN_FLOOR_PLANS = frozenset({10, 219, 308, 424})
GOAL_SLOT = "UNKNOWN GOAL"
# receptacle kind -> names of the objects it may hold
CONTENTS: dict[str, set[str]] = tables.VAL_RECEPTACLE_OBJECTS
LAMPS = frozenset(tables.VAL_ACTION_OBJECTS["Toggleable"])
LAMP_PLACES = frozenset(
    [
        "Desk",
        "SideTable",
        "Dresser",
        "CoffeeTable",
        "DiningTable",
        "Shelf",
        "Sofa",
        "Bed",
        "TVStand",
        "ArmChair",
    ]
)
# floor plans list these among their objects, without a pose
UNPOSED = {"StoveBurner": 4, "CoffeeMachine": 1, "Toaster": 1}
FIXTURES = frozenset({"Television", "HousePlant", "Chair", "Painting"}) | LAMPS
HEAVY = FIXTURES | (set(CONTENTS) - set(tables.MOVABLE_RECEPTACLES))
# task type -> (what the object must afford, where that is done)
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
AFFORDANCES = ("Cleanable", "Heatable", "Coolable", "Toggleable", "Sliceable")
ATTEMPTS = 400


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


class Goal(NamedTuple):
    """What is asked for: an object name, and where it ends or which lamp it is looked at under."""

    task_type: str
    target: str
    parent: str = ""
    lamp: str = ""


@dataclass(slots=True)
class Scene:
    """Receptacles with their places, and objects with their receptacles."""

    receptacles: dict[str, str]
    """Receptacle id -> location id."""
    objects: list[tuple[str, str, str]] = field(default_factory=list)
    """(object id, object name, receptacle id)."""


def sample_game(scenes: Scenes, name: TaskName) -> GameData:
    """Return the game called `name`: the same for the same options, in any process.

    Raises ValueError when no floor plan allows the task types under these options.
    """
    random = Random(str(name))
    types = scenes.held_out_types if name.split == "L2" else scenes.task_types
    for _ in range(ATTEMPTS):
        task_type = random.choice(types)
        plans = floor_plans(scenes, task_type, unseen=name.split == "L1")
        if plans and (game := _sample(random, scenes, task_type, random.choice(plans))):
            return game
    raise ValueError(
        f"no scene of {scenes} allows any of {', '.join(types)} in split {name.split}; "
        "allow more rooms, object names or receptacles"
    )


def floor_plans(scenes: Scenes, task_type: str, *, unseen: bool) -> list[int]:
    """Return the floor plans on which `task_type` is played, held-out ones or the others."""
    rooms = tables.GOALS_VALID[task_type] & set(scenes.rooms)
    return [
        plan
        for room in scenes.rooms
        if room in rooms
        for plan in tables.SCENE_TYPE[room]
        if plan in set(tables.SCENE_NUMBERS) and (plan in UNSEEN_FLOOR_PLANS) == unseen
    ]


def _sample(random: Random, scenes: Scenes, task_type: str, plan: int) -> GameData | None:
    """Return a game on a floor plan, or None when the draw does not fit the task."""
    receptacles, present = _floor_plan(plan)
    receptacles = dict(receptacles)
    for kind, count in UNPOSED.items():
        for index in range(count if kind in present else 0):
            location = f"loc|{random.randint(-12, 12)}|{random.randint(-12, 12)}|0|{45 + index}"
            receptacles[_identify(random, kind)] = location
    kinds = {_kind(receptacle) for receptacle in receptacles}
    names = [name for name in _portable(present, kinds) if name in _names_in_use(scenes)]
    goal = _sample_goal(random, task_type, names, present, kinds)
    if goal is None:
        return None
    scene = Scene(_keep(random, scenes, receptacles, goal))
    if not _place(random, scenes, scene, goal, names, present):
        return None
    return _write(random, scene, goal)


def _sample_goal(
    random: Random, task_type: str, names: list[str], present: list[str], kinds: set[str]
) -> Goal | None:
    """Return a goal that the floor plan's names and receptacle kinds allow, or None."""
    affordance, appliance = TREATMENTS.get(task_type, (None, None))
    if affordance:
        names = [name for name in names if name in tables.VAL_ACTION_OBJECTS[affordance]]
    lamps = [name for name in present if name in LAMPS]
    looking = task_type == "look_at_obj_in_light"
    if not names or (appliance and appliance not in kinds) or (looking and not lamps):
        return None
    target = random.choice(names)
    if looking:
        return Goal(task_type, target, lamp=random.choice(lamps))
    # a coffee machine holds one mug only
    barred = {appliance, "CoffeeMachine" if task_type == "pick_two_obj_and_place" else None}
    parents = [kind for kind in sorted(kinds - barred) if _fits(target, kind)]
    return Goal(task_type, target, parent=random.choice(parents)) if parents else None


def _keep(
    random: Random, scenes: Scenes, receptacles: dict[str, str], goal: Goal
) -> dict[str, str]:
    """Return at most `max_receptacles` of the receptacles, among them what the goal needs."""
    order = random.sample(list(receptacles), len(receptacles))
    kept: list[str] = []
    needs = [{goal.parent}, {TREATMENTS.get(goal.task_type, ("", ""))[1]}]
    needs.append({_kind(r) for r in order if _fits(goal.target, _kind(r))} - {goal.parent})
    needs.append(LAMP_PLACES if goal.lamp else frozenset())
    for need in needs:
        fitting = [receptacle for receptacle in order if _kind(receptacle) in need]
        if fitting and not any(receptacle in kept for receptacle in fitting):
            kept.append(fitting[0])
    size = min(scenes.max_receptacles, len(order))
    if scenes.closed is not None:
        wanted = round(scenes.closed * size) - sum(map(_openable, kept))
        rest = [receptacle for receptacle in order if receptacle not in kept]
        first = [receptacle for receptacle in rest if _openable(receptacle)][: max(0, wanted)]
        then = [receptacle for receptacle in rest if not _openable(receptacle)]
        order = first + then + [receptacle for receptacle in rest if receptacle not in first + then]
    kept += [receptacle for receptacle in order if receptacle not in kept]
    chosen = set(kept[:size])
    return {r: location for r, location in receptacles.items() if r in chosen}


def _place(
    random: Random, scenes: Scenes, scene: Scene, goal: Goal, names: list[str], present: list[str]
) -> bool:
    """Fill `scene` with the targets, other objects and lamps; False when something has no room."""

    def put(name: str, places: list[str]) -> bool:
        if places:
            scene.objects.append((_identify(random, name), name, random.choice(places)))
        return bool(places)

    def places(name: str) -> list[str]:
        return [receptacle for receptacle in scene.receptacles if _fits(name, _kind(receptacle))]

    sources = [place for place in places(goal.target) if _kind(place) != goal.parent]
    needed = 2 if goal.task_type == "pick_two_obj_and_place" else 1
    for _ in range(needed + random.choice((0, 0, 1))):
        closed = [place for place in sources if _openable(place)]
        hide = closed and random.random() < scenes.hidden
        if not put(goal.target, closed if hide else sources):
            return False
    for name in names:
        if name != goal.target and random.random() < scenes.fill:
            for _ in range(random.randint(1, scenes.max_instances)):
                put(name, places(name))
    surfaces = [receptacle for receptacle in scene.receptacles if _kind(receptacle) in LAMP_PLACES]
    for lamp in sorted(LAMPS.intersection(present)):
        if not put(lamp, surfaces) and lamp == goal.lamp:
            return False
    return True


def _write(random: Random, scene: Scene, goal: Goal) -> GameData:
    """Return the scene and its goal as a planning problem."""
    places = set(scene.receptacles.values())
    start = _location(random)
    while start in places:
        start = _location(random)
    params = {"obj": goal.target, "recep": goal.parent, "toggle": goal.lamp, "mrecep": ""}
    entry = gdict[goal.task_type]
    problem = "\n".join(
        [
            "(define (problem generated)\n(:domain alfred)\n(:objects",
            *_objects(scene, places | {start}),
            ")\n(:init",
            *_facts(scene, start),
            ")",
            entry["pddl"].format(**params).replace("#", "-"),
        ]
    )
    lower = {key: value.lower() for key, value in params.items()}
    return GameData(
        domain=_text(ALFRED_PDDL_PATH),
        grammar=_text(ALFRED_TWL2_PATH),
        problem=problem,
        goal=random.choice(entry["templates"]).format(**lower),
        task_type=goal.task_type,
        params={
            "object_target": goal.target,
            "parent_target": goal.parent,
            "toggle_target": goal.lamp,
            "mrecep_target": "",
        },
    )


def _objects(scene: Scene, locations: set[str]) -> list[str]:
    """Return the declarations of everything the problem names."""
    # the domain's actions refer to these by name
    object_types = {name for _, name, _ in scene.objects} | {"Knife", "ButterKnife"}
    kinds = {_kind(receptacle) for receptacle in scene.receptacles}
    receptacle_types = kinds | {"Microwave", "Fridge", "SinkBasin"}
    return [
        "agent1 - agent",
        *(f"{_mangle(location)} - location" for location in sorted(locations)),
        *(f"{_mangle(receptacle)} - receptacle" for receptacle in scene.receptacles),
        *(f"{_mangle(identity)} - object" for identity, _, _ in scene.objects),
        *(f"{name}Type - otype" for name in sorted(object_types)),
        *(f"{kind}Type - rtype" for kind in sorted(receptacle_types)),
    ]


def _facts(scene: Scene, start: str) -> list[str]:
    """Return the facts of the initial state."""
    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {_mangle(start)})"]
    for receptacle, location in scene.receptacles.items():
        mangled, kind = _mangle(receptacle), _kind(receptacle)
        facts.append(f"(receptacleType {mangled} {kind}Type)")
        facts.append(f"(receptacleAtLocation {mangled} {_mangle(location)})")
        if _openable(receptacle):
            facts.append(f"(openable {mangled})")
    names = sorted({name for _, name, _ in scene.objects})
    for kind in sorted({_kind(receptacle) for receptacle in scene.receptacles}):
        facts += [f"(canContain {kind}Type {name}Type)" for name in names if _fits(name, kind)]
    for identity, name, receptacle in scene.objects:
        mangled = _mangle(identity)
        facts.append(f"(objectType {mangled} {name}Type)")
        facts.append(f"(inReceptacle {mangled} {_mangle(receptacle)})")
        facts.append(f"(objectAtLocation {mangled} {_mangle(scene.receptacles[receptacle])})")
        if name not in FIXTURES:
            facts.append(f"(pickupable {mangled})")
        for affordance in AFFORDANCES:
            if name in tables.VAL_ACTION_OBJECTS[affordance]:
                facts.append(f"({affordance.lower()} {mangled})")
        if name in tables.MOVABLE_RECEPTACLES_SET:
            facts.append(f"(isReceptacleObject {mangled})")
    return facts


@cache
def _floor_plan(plan: int) -> tuple[dict[str, str], list[str]]:
    """Return (receptacle id -> location id, names of the objects) of a floor plan."""
    layouts = Path(tables.__file__).parent / "layouts"
    poses = json.loads((layouts / f"FloorPlan{plan}-openable.json").read_text())
    receptacles = {
        receptacle: f"loc|{round(x * 4)}|{round(z * 4)}|{round(rotation / 90)}|{round(horizon)}"
        for receptacle, (x, z, rotation, horizon) in poses.items()
        if _kind(receptacle) in CONTENTS
    }
    return receptacles, json.loads((layouts / f"FloorPlan{plan}-objects.json").read_text())


@cache
def _names_in_use(scenes: Scenes) -> frozenset[str]:
    """Return the object names that the options allow, each needed affordance served."""
    plans = [plan for room in scenes.rooms for plan in tables.SCENE_TYPE[room]]
    names = sorted({name for plan in plans for name in _floor_plan(plan)[1]} - HEAVY)
    names = [name for name in names if any(name in held for held in CONTENTS.values())]
    if scenes.object_names is None:
        return frozenset(names)
    order = Random(scenes.name_seed).sample(names, len(names))
    types = scenes.task_types + scenes.held_out_types
    needed = [TREATMENTS[task_type][0] for task_type in types if task_type in TREATMENTS]
    serving = [
        [name for name in order if name in tables.VAL_ACTION_OBJECTS[affordance]][:2]
        for affordance in needed
    ]
    first = [name for pair in serving for name in pair]
    unique = list(dict.fromkeys(first + order))
    return frozenset(unique[: scenes.object_names])


def _portable(present: list[str], kinds: set[str]) -> list[str]:
    """Return the names that can be carried and have a receptacle here."""
    return [
        name
        for name in present
        if name not in HEAVY | kinds and any(_fits(name, kind) for kind in kinds)
    ]


def _fits(name: str, kind: str) -> bool:
    """Return whether a receptacle of `kind` may hold objects called `name`."""
    return name in CONTENTS[kind]


def _openable(receptacle: str) -> bool:
    """Return whether a receptacle starts closed."""
    return _kind(receptacle) in tables.OPENABLE_CLASS_SET


def _kind(receptacle: str) -> str:
    """Return the kind of a receptacle id; `Sink|...|SinkBasin` is a SinkBasin."""
    parts = receptacle.split("|")
    return parts[-1] if parts[-1].endswith("Basin") else parts[0]


def _identify(random: Random, name: str) -> str:
    """Return a fresh id in ALFRED's form, e.g. `Mug|+01.25|+00.90|-02.10`."""
    x, y, z = random.uniform(-5, 5), random.uniform(0, 2), random.uniform(-5, 5)
    return f"{name}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"


def _location(random: Random) -> str:
    """Return a place in the middle of the room."""
    return f"loc|{random.randint(-20, 20)}|{random.randint(-20, 20)}|{random.randint(0, 3)}|30"


def _mangle(identity: str) -> str:
    """Return an id spelt as the planning language allows; ALFWorld's Demangler undoes it."""
    for character, word in (
        ("|", "bar"),
        ("+", "plus"),
        ("-", "minus"),
        (".", "dot"),
        (",", "comma"),
    ):
        identity = identity.replace(character, f"_{word}_")
    return identity


@cache
def _text(path: str) -> str:
    return Path(path).read_text()
