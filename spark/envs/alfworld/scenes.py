"""What generated games look like: options only, no ALFWorld import."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from spark.envs.splits import SPLITS

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
ROOMS = ("Kitchen", "LivingRoom", "Bedroom", "Bathroom")


@dataclass(kw_only=True, frozen=True)
class Scenes:
    """How scenes are sampled. L1 uses held-out floor plans, L2 held-out task types.

    Example:
        Scenes(rooms=("Bedroom", "Bathroom"), max_receptacles=10, object_names=12, hidden=0.8,
               task_types=("pick_and_place_simple", "look_at_obj_in_light"),
               held_out_types=("pick_two_obj_and_place",))
    """

    rooms: tuple[str, ...] = ROOMS
    """Rooms the floor plans are taken from."""
    task_types: tuple[str, ...] = TASK_TYPES[:4]
    """Task types of train, L0 and L1."""
    held_out_types: tuple[str, ...] = TASK_TYPES[4:]
    """Task types of L2."""
    max_receptacles: int = 60
    """Receptacles a scene keeps at most; those the task needs are always kept."""
    fill: float = 0.5
    """Share of the floor plan's object names, apart from the target's, that are present."""
    max_instances: int = 2
    """Objects of one name at most, apart from the target's."""
    object_names: int | None = None
    """Object names in use over all scenes together, a subset drawn from `name_seed`; None = all."""
    name_seed: int = 0
    """Seed of that subset."""
    closed: float | None = None
    """Share of closed receptacles (drawers, cabinets...) to aim at among those that are kept;
    None = as the floor plan has them."""
    hidden: float = 0.0
    """Probability that a game's targets lie in closed receptacles where the scene has some."""

    def __post_init__(self) -> None:
        for name, known in (("rooms", ROOMS), ("task_types", TASK_TYPES)):
            _check_names(name, getattr(self, name), known)
        _check_names("held_out_types", self.held_out_types, TASK_TYPES)
        if both := sorted(set(self.task_types) & set(self.held_out_types)):
            raise ValueError(f"held_out_types: {both[0]!r} is among task_types too; remove it once")
        for name, least in (("max_receptacles", 4), ("max_instances", 1), ("object_names", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small; at least {least} is needed")
        for name in ("fill", "closed", "hidden"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value} is not a share; choose it within [0, 1]")

    def digest(self) -> str:
        """Return eight characters that differ between different options."""
        text = repr(sorted((field.name, asdict(self)[field.name]) for field in fields(self)))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class TaskName(NamedTuple):
    """A generated game's name, e.g. `L0/3/17@9f86d081`: it fixes the game down to every object."""

    split: str
    seed: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.split}/{self.seed}/{self.number}@{self.digest}"

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Read a name back. Raises ValueError when it is none."""
        path, _, digest = text.partition("@")
        parts = path.split("/")
        numbers = all(part.isdecimal() for part in parts[1:])
        if len(parts) != 3 or parts[0] not in SPLITS or not numbers or not digest:
            raise ValueError(f"task {text!r} is no generated task; expected e.g. L0/0/17@9f86d081")
        return cls(parts[0], int(parts[1]), int(parts[2]), digest)


def _check_names(field: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise ValueError when `values` is empty or holds an unknown name."""
    if not values:
        raise ValueError(f"{field} is empty; choose among {', '.join(known)}")
    for value in values:
        if value not in known:
            raise ValueError(f"{field}: unknown {value!r}; choose among {', '.join(known)}")
