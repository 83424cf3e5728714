"""Samples games over ALFWorld's floor plans."""

from __future__ import annotations

from random import Random

from spark.envs.alfworld import floorplans
from spark.envs.alfworld.floorplans import (
    AFFORDANCES,
    CLOSED,
    LAMPS,
    TREATMENTS,
    fits,
    kind,
    openable,
)
from spark.envs.alfworld.problem import GameData, Goal, Scene, write
from spark.envs.alfworld.scenes import Scenes, TaskName

LAMP_PLACES = {"Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf", "TVStand"}
# floor plans list these among their objects, without a pose
UNPOSED = {"StoveBurner": 4, "CoffeeMachine": 1, "Toaster": 1}
ATTEMPTS = 400


def sample_game(scenes: Scenes, name: TaskName) -> GameData:
    """Return the game called `name`: the same for the same options, in any process.

    Raises ValueError when the options leave no scene for the split's task types.
    """
    random = Random(str(name))
    types = scenes.held_out_types if name.split == "L2" else scenes.task_types
    for _ in range(ATTEMPTS):
        task_type = random.choice(types)
        numbers = floorplans.numbers(scenes, task_type, unseen=name.split == "L1")
        if numbers and (game := _sample(random, scenes, task_type, random.choice(numbers))):
            return game
    raise ValueError(
        f"{scenes} leaves no scene for {', '.join(types)} in split {name.split}; "
        "allow more rooms, object_names or max_receptacles"
    )


def _sample(random: Random, scenes: Scenes, task_type: str, number: int) -> GameData | None:
    """Return a game on a floor plan, or None when the draw does not fit the task."""
    posed, present = floorplans.read(number)
    receptacles = posed | _pose(random, present)
    kinds = {kind(receptacle) for receptacle in receptacles}
    in_use = floorplans.names_in_use(scenes)
    names = [name for name in floorplans.portable(present, kinds) if name in in_use]
    hide = random.random() < scenes.hidden
    hidden = [name for name in names if any(fits(name, kind) for kind in kinds & CLOSED)]
    goal = _choose_goal(random, task_type, (hide and hidden) or names, present, kinds)
    if goal is None:
        return None
    chosen = _choose_receptacles(random, scenes, receptacles, goal, hide)
    scene = Scene(number, _start(random), chosen)
    lamps = sorted(LAMPS.intersection(present))
    if not (_hide(random, scene, goal, hide) and _light(random, scene, goal, lamps)):
        return None
    _furnish(random, scenes, scene, goal, names)
    return write(scene, goal, random.choice(goal.wordings()))


def _choose_goal(
    random: Random, task_type: str, names: list[str], present: list[str], kinds: set[str]
) -> Goal | None:
    """Return a goal that the floor plan's names and receptacle kinds allow, or None."""
    affordance, appliance = TREATMENTS.get(task_type, ("", ""))
    if affordance:
        names = [name for name in names if name in AFFORDANCES[affordance]]
    lamps = [name for name in present if name in LAMPS]
    looking = task_type == "look_at_obj_in_light"
    if not names or (appliance and appliance not in kinds) or (looking and not lamps):
        return None
    target = random.choice(names)
    if looking:
        return Goal(task_type, target, lamp=random.choice(lamps))
    # a coffee machine holds one mug only
    barred = {appliance, "CoffeeMachine" if task_type == "pick_two_obj_and_place" else ""}
    parents = [parent for parent in sorted(kinds - barred) if fits(target, parent)]
    return Goal(task_type, target, parent=random.choice(parents)) if parents else None


def _choose_receptacles(
    random: Random, scenes: Scenes, receptacles: dict[str, str], goal: Goal, hide: bool
) -> dict[str, str]:
    """Return at most `max_receptacles` of the receptacles, among them what the goal needs."""
    order = random.sample(list(receptacles), len(receptacles))
    size = min(scenes.max_receptacles, len(order))
    kept: list[str] = []
    for kinds in _needs(goal, {kind(receptacle) for receptacle in order}, hide):
        fitting = [receptacle for receptacle in order if kind(receptacle) in kinds]
        if fitting and not set(fitting) & set(kept):
            kept.append(fitting[0])
    if scenes.closed is not None:
        missing = max(0, round(scenes.closed * size) - sum(map(openable, kept)))
        first = [r for r in order if openable(r) and r not in kept][:missing]
        then = [r for r in order if not openable(r)]
        order = list(dict.fromkeys(first + then + order))
    chosen = set(list(dict.fromkeys(kept + order))[:size])
    return {r: location for r, location in receptacles.items() if r in chosen}


def _needs(goal: Goal, kinds: set[str], hide: bool) -> list[set[str]]:
    """Return the sets of receptacle kinds of which a game with `goal` needs one each."""
    sources = {kind for kind in kinds if fits(goal.target, kind)} - {goal.parent}
    if hide:
        sources = sources & CLOSED or sources
    appliance = TREATMENTS.get(goal.task_type, ("", ""))[1]
    return [{goal.parent}, {appliance}, sources, LAMP_PLACES if goal.lamp else set()]


def _hide(random: Random, scene: Scene, goal: Goal, closed: bool) -> bool:
    """Put the targets where they must be found; False when there is no such place."""
    places = [place for place in _places(scene, goal.target) if kind(place) != goal.parent]
    if closed:
        places = [place for place in places if openable(place)] or places
    needed = 2 if goal.task_type == "pick_two_obj_and_place" else 1
    for _ in range(needed + random.choice((0, 0, 1)) if places else 0):
        scene.objects.append((_identify(random, goal.target), goal.target, random.choice(places)))
    return bool(places)


def _furnish(random: Random, scenes: Scenes, scene: Scene, goal: Goal, names: list[str]) -> None:
    """Put other objects in place."""
    for name in names:
        places = _places(scene, name)
        if name != goal.target and places and random.random() < scenes.fill:
            for _ in range(random.randint(1, scenes.max_instances)):
                scene.objects.append((_identify(random, name), name, random.choice(places)))


def _light(random: Random, scene: Scene, goal: Goal, lamps: list[str]) -> bool:
    """Put the lamps in place; False when the one that is asked for has none."""
    places = [receptacle for receptacle in scene.receptacles if kind(receptacle) in LAMP_PLACES]
    for lamp in lamps if places else []:
        scene.objects.append((_identify(random, lamp), lamp, random.choice(places)))
    return bool(places) or not goal.lamp


def _places(scene: Scene, name: str) -> list[str]:
    return [receptacle for receptacle in scene.receptacles if fits(name, kind(receptacle))]


def _pose(random: Random, present: list[str]) -> dict[str, str]:
    """Return receptacles and made-up places for those that floor plans leave without."""
    return {
        _identify(random, kind): _location(random, 45 + index)
        for kind, count in UNPOSED.items()
        if kind in present
        for index in range(count)
    }


def _start(random: Random) -> str:
    # receptacles are looked at from horizons 0, 30, 45...; nobody stands at this one
    return _location(random, 15)


def _location(random: Random, horizon: int) -> str:
    x, z, rotation = random.randint(-20, 20), random.randint(-20, 20), random.randint(0, 3)
    return f"loc|{x}|{z}|{rotation}|{horizon}"


def _identify(random: Random, name: str) -> str:
    """Return a fresh id in ALFRED's form, e.g. `Mug|+01.25|+00.90|-02.10`."""
    x, y, z = random.uniform(-5, 5), random.uniform(0, 2), random.uniform(-5, 5)
    return f"{name}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"
