"""What ALFWorld's tables say: floor plans, receptacles, and which object goes where.

Everything is read from the installed `alfworld` package; none of it is copied into this project.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random

import alfworld.gen.constants as tables

from spark.envs.alfworld.scenes import Scenes

UNSEEN = frozenset({10, 219, 308, 424})
"""Floor plans held out for L1: ALFRED's valid_unseen."""
CONTENTS: dict[str, set[str]] = tables.VAL_RECEPTACLE_OBJECTS
"""Receptacle kind -> names of the objects it may hold."""
AFFORDANCES: dict[str, set[str]] = tables.VAL_ACTION_OBJECTS
"""Cleanable, Heatable, Coolable, Toggleable, Sliceable -> names of such objects."""
CLOSED = frozenset(tables.OPENABLE_CLASS_SET)
"""Receptacle kinds that can be opened; all of them start closed."""
CONTAINERS: frozenset[str] = frozenset(tables.MOVABLE_RECEPTACLES)
"""Portable objects that hold others."""
LAMPS = frozenset(AFFORDANCES["Toggleable"])
FIXED = LAMPS | {"Television", "HousePlant", "Chair", "Painting"} | (set(CONTENTS) - CONTAINERS)
"""Names of what nobody picks up."""
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
"""Task type -> (what its object must afford, receptacle kind where that is done)."""


def numbers(scenes: Scenes, task_type: str, *, unseen: bool) -> list[int]:
    """Return the floor plans on which `task_type` is played, the held-out ones or the others."""
    rooms = [room for room in scenes.rooms if room in tables.GOALS_VALID[task_type]]
    return [
        number
        for room in rooms
        for number in tables.SCENE_TYPE[room]
        if (number in UNSEEN) == unseen
    ]


@cache
def read(number: int) -> tuple[dict[str, str], list[str]]:
    """Return (receptacle id -> location id, names of the objects) of a floor plan."""
    layouts = Path(tables.__file__).parent / "layouts"
    poses = json.loads((layouts / f"FloorPlan{number}-openable.json").read_text())
    receptacles = {
        receptacle: f"loc|{round(x * 4)}|{round(z * 4)}|{round(rotation / 90)}|{round(horizon)}"
        for receptacle, (x, z, rotation, horizon) in poses.items()
        if kind(receptacle) in CONTENTS
    }
    return receptacles, json.loads((layouts / f"FloorPlan{number}-objects.json").read_text())


@cache
def names_in_use(scenes: Scenes) -> frozenset[str]:
    """Return the names of portable objects that the options allow, needed affordances served."""
    plans = [number for room in scenes.rooms for number in tables.SCENE_TYPE[room]]
    names = sorted({name for number in plans for name in read(number)[1]} - FIXED)
    names = [name for name in names if any(name in held for held in CONTENTS.values())]
    if scenes.object_names is None:
        return frozenset(names)
    order = Random(scenes.name_seed).sample(names, len(names))
    first: list[str] = []
    for task_type in scenes.task_types + scenes.held_out_types:
        if task_type in TREATMENTS:
            able = AFFORDANCES[TREATMENTS[task_type][0]]
            first += [name for name in order if name in able][:2]
    return frozenset(list(dict.fromkeys(first + order))[: scenes.object_names])


def portable(present: Iterable[str], kinds: set[str]) -> list[str]:
    """Return the names among `present` that can be carried and fit a receptacle of `kinds`."""
    return [
        name for name in present if name not in FIXED and any(fits(name, kind) for kind in kinds)
    ]


def fits(name: str, kind: str) -> bool:
    """Return whether a receptacle of `kind` may hold objects called `name`."""
    return name in CONTENTS[kind]


def openable(receptacle: str) -> bool:
    """Return whether a receptacle can be opened."""
    return kind(receptacle) in CLOSED


def kind(receptacle: str) -> str:
    """Return the kind of a receptacle id; that of `Sink|...|SinkBasin` is SinkBasin."""
    parts = receptacle.split("|")
    return parts[-1] if parts[-1].endswith("Basin") else parts[0]
