"""Small environments with every fault that a real one can have."""

import os
import time
from pathlib import Path
from typing import ClassVar

from spark.envs.replay import ReplayMixin

DRIFTS = []


class Corridor(ReplayMixin):
    """Walk right three times to win; some commands misbehave."""

    def __init__(self, determinism="exact"):
        self.determinism = determinism
        self.place = 0
        self.clock = 0

    def begin(self, task, seed):
        if not task.startswith("corridor"):
            raise ValueError(f"task {task!r} is unknown; use corridor")
        self.place = 0
        return f"{task}, place 0", self.info()

    def act(self, action):
        if action == "crash":
            raise KeyError("lamp")
        if action == "hang":
            time.sleep(600)
        if action == "nap":
            time.sleep(0.4)
        if action == "die":
            os._exit(3)
        if action == "number":
            return 7, 0.0, False, False, self.info()
        if action == "unscored":
            return "text", float("nan"), False, False, self.info()
        self.place += {"right": 1, "left": -1}.get(action, 0)
        won = self.place == 3
        text = f"place {self.place}"
        if action == "drift":
            DRIFTS.append(1)
            text += f", seen {os.getpid()} {len(DRIFTS)}"
        reward = float(won) if action != "luck" else float(len(DRIFTS))
        return text, reward, won, False, self.info()

    def info(self):
        return {"admissible": ["left", "right", "wait"], "won": self.place == 3}

    def fresh(self):
        return Corridor(self.determinism)


class CorridorSource:
    def __init__(self, determinism="exact"):
        self.determinism = determinism

    def tasks(self, split, count, seed=0):
        return [f"corridor/{split}/{seed}/{index}" for index in range(count)]

    def make(self):
        return Corridor(self.determinism)


class Endless(Corridor):
    """Never won, so that walks get as deep as they like."""

    def act(self, action):
        text, _, _, truncated, info = super().act(action)
        return text, 0.0, False, truncated, info | {"won": False}

    def fresh(self):
        return type(self)()


class Broken(Endless):
    """Its forks forget where they are."""

    fork_kind = "copy"

    def fork(self):
        child = type(self)()
        child.reset(self.snapshot().task)
        return child


class Mute(Endless):
    """Does not say what can be done."""

    def info(self):
        return {"won": False}


class Free(Endless):
    """Takes any text, and names none."""

    def info(self):
        return super().info() | {"admissible": None}

    def fresh(self):
        return Free()


class FreeSource(CorridorSource):
    def make(self):
        return Free()


class Unscored(Endless):
    """Its rewards are no numbers."""

    def act(self, action):
        text, _, *rest = super().act(action)
        return text, float("nan"), *rest


class EndlessSource(CorridorSource):
    kind = Endless

    def make(self):
        return self.kind()


class BrokenSource(EndlessSource):
    kind = Broken


class UnscoredSource(EndlessSource):
    kind = Unscored


class MuteSource(EndlessSource):
    kind = Mute


class Forgetful(Corridor):
    """Goes elsewhere when its commands are repeated, which a fork by replay does."""

    def begin(self, task, seed):
        DRIFTS.append(1)
        return f"{task}, start {os.getpid()} {len(DRIFTS)}", self.info()

    def fresh(self):
        return Forgetful()


class Talkative(Corridor):
    """Tells what cannot travel between processes."""

    def act(self, action):
        text, reward, terminated, truncated, info = super().act(action)
        return text, reward, terminated, truncated, info | {"why": lambda: action}


class Counted(Corridor):
    """Says how many of its kind are open in its process."""

    OPEN: ClassVar[set] = set()

    def begin(self, task, seed):
        self.OPEN.add(self)
        return super().begin(task, seed)

    def act(self, action):
        _, *rest = super().act(action)
        return f"{len(self.OPEN)} open", *rest

    def close(self):
        self.OPEN.discard(self)

    def fresh(self):
        return Counted()


class Stuck(Corridor):
    """Cannot be closed."""

    def close(self):
        raise OSError("stuck")

    def fresh(self):
        return Stuck()


class Gated(Counted):
    """Its forks, copies, and the command "gate" wait at the FIFO that the task names."""

    fork_kind = "copy"

    def begin(self, task, seed):
        self.gate = Path(task.removeprefix("corridor"))
        return super().begin(task, seed)

    def act(self, action):
        if action == "gate":
            self.gate.read_text()
        return super().act(action)

    def fork(self):
        self.gate.read_text()
        child = Gated()
        child.reset(self.snapshot().task)
        return child


class SourceOf(CorridorSource):
    """Makes one kind of environment, of which a process holds `capacity` at once."""

    def __init__(self, kind, tied=None, capacity=None):
        super().__init__()
        self.kind, self.tied, self.capacity = kind, tied, capacity

    def make(self):
        return self.kind()
