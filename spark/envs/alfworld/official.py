"""The official ALFWorld games, read from the folder that `alfworld-download` makes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from spark.envs.alfworld.problem import GOAL_SLOT, GameData
from spark.envs.alfworld.scenes import TASK_TYPES
from spark.envs.splits import drawn

FOLDERS = {"train": "train", "L0": "valid_seen", "L1": "valid_unseen", "L2": "valid_unseen"}
REMEDY = "run `alfworld-download` (it fills ~/.cache/alfworld) and give its json_2.1.1 folder"
# goals whose words mean something to the grammar are left where they are
GOAL = re.compile(r'(Your task is to: )([^"#{}\[\]\\]+)(\.")')


class OfficialGames:
    """Games below `root`: train, valid_seen (L0) and valid_unseen (L1); L2 takes the held-out task
    types from valid_unseen, which train, L0 and L1 then leave out.
    """

    def __init__(self, root: Path, held_out: Sequence[str] = TASK_TYPES[4:]) -> None:
        """Raises ValueError when `root` does not hold the games."""
        if not root.is_dir():
            raise ValueError(f"data={str(root)!r} does not exist; {REMEDY}")
        if not any((root / folder).is_dir() for folder in FOLDERS.values()):
            raise ValueError(f"data={str(root)!r} holds no train or valid folder; {REMEDY}")
        self.root = root
        self.held_out = frozenset(held_out)

    def tasks(self, split: str, count: int, seed: int) -> list[str]:
        """Return `count` games of `split` in an order fixed by the seed, repeated if too few."""
        names = [
            name
            for name, task_type in self._index.items()
            if name.startswith(FOLDERS[split] + "/")
            and (task_type in self.held_out) == (split == "L2")
        ]
        if not names:
            raise ValueError(f"data={str(self.root)!r} has no game of split {split}; {REMEDY}")
        return drawn(names, split, count, seed)

    def read(self, task: str) -> GameData:
        """Return the game in the folder called `task`. Raises ValueError when there is none."""
        folder = self.root / task
        try:
            game = json.loads((folder / "game.tw-pddl").read_text())
            trajectory = json.loads((folder / "traj_data.json").read_text())
        except OSError as error:
            raise ValueError(f"task {task!r} is not below {str(self.root)!r}: {error}") from error
        grammar, goal = game["grammar"], ""
        if found := GOAL.search(grammar):
            goal = found[2]
            grammar = GOAL.sub(rf"\g<1>{GOAL_SLOT}\g<3>", grammar)
        params = {key: str(value) for key, value in trajectory["pddl_params"].items()}
        return GameData(
            game["pddl_domain"],
            grammar,
            game["pddl_problem"],
            goal,
            trajectory["task_type"],
            params,
            int(trajectory["scene"]["scene_num"]),
        )

    @cached_property
    def _index(self) -> dict[str, str]:
        """Game folder relative to the root -> task type, as ALFWorld itself selects them."""
        index = {}
        for file in sorted(self.root.rglob("game.tw-pddl")):
            name = file.parent.relative_to(self.root).as_posix()
            if "movable" in name or "Sliced" in name:
                continue
            if json.loads(file.read_text()).get("solvable"):
                trajectory = json.loads((file.parent / "traj_data.json").read_text())
                index[name] = trajectory["task_type"]
        return index
