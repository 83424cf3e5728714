"""The simulators of a process: how many there are, who has them, which stand ready."""

from __future__ import annotations

import queue
import threading
import weakref

from spark.envs.base import EnvError
from spark.envs.scienceworld.jvm import Jvm, Simulator
from spark.envs.scienceworld.options import TaskName


class Simulators:
    """Lends simulators at the start of a task, some of which were brought there in advance."""

    def __init__(self, limit: int, spares: int) -> None:
        """`limit`: simulators at most; `spares`: kept ready for each task in play."""
        self.limit, self.spares = limit, spares
        self.closed = False
        self._lock = threading.Condition()
        self._jvm: Jvm | None = None
        self._lent = 0
        """In use by trajectories, or being brought to a start."""
        self._playing: dict[Simulator, TaskName] = {}
        """Those in use by trajectories -> what they were lent for."""
        self._preparing = False
        self._idle: list[Simulator] = []
        """Not lent, the longest idle first; with a name: at the start of that task."""
        self._wishes: queue.SimpleQueue[TaskName | None] = queue.SimpleQueue()

    def take(self, name: TaskName) -> Simulator:
        """Return a simulator at the start of `name`.

        Raises EnvError when all of them are lent or `name` cannot be loaded.
        """
        simulator = self._find(name)
        try:
            if simulator.name != name:
                simulator.load(name)
        except BaseException:
            self.give(simulator)
            raise
        with self._lock:
            forked = name in self._playing.values()
            self._playing[simulator] = name
        # who plays alone, as in an evaluation, does not fork: spares would be loaded for nobody
        for _ in range(self.spares - self._ready(name) if forked else 0):
            self._wishes.put(name)
        return simulator

    def give(self, simulator: Simulator) -> None:
        """Take a simulator back."""
        with self._lock:
            simulator.name = None
            self._playing.pop(simulator, None)
            self._lent -= 1
            self._idle.insert(0, simulator)

    def blank(self) -> Simulator:
        """Return a simulator with nothing of use loaded, for questions; give it back."""
        return self._find(None)

    def close(self) -> None:
        """End the virtual machine."""
        self._wishes.put(None)
        with self._lock:
            self.closed = True
            if self._jvm is not None:
                self._jvm.close()

    def _find(self, name: TaskName | None) -> Simulator:
        """Return an idle simulator, at the start of `name` if one is, or a new one."""
        with self._lock:
            if self._jvm is None:
                self._jvm = Jvm(self.limit)
                arguments = (weakref.ref(self), self._wishes)
                threading.Thread(target=_prepare, args=arguments, daemon=True).start()
            for simulator in self._idle:
                if name is not None and simulator.name == name:
                    self._idle.remove(simulator)
                    break
            else:
                simulator = self._any()
            self._lent += 1
            return simulator

    def _any(self) -> Simulator:
        """Return an idle simulator that is at no start, a new one, or the longest idle one."""
        assert self._jvm is not None
        while self._preparing and not self._idle and self._lent >= self.limit:
            # the last one is about to be a spare
            self._lock.wait()
        if self._idle and self._idle[0].name is None:
            return self._idle.pop(0)
        if self._lent + len(self._idle) < self.limit:
            return self._jvm.simulator()
        if self._idle:
            return self._idle.pop(0)
        raise EnvError(
            f"all simulators={self.limit} are in use; raise simulators, spread the environments "
            "over a pool of processes or roll out fewer trajectories at once"
        )

    def _ready(self, name: TaskName) -> int:
        with self._lock:
            return sum(simulator.name == name for simulator in self._idle)

    def prepare(self, name: TaskName) -> None:
        """Bring one more idle simulator to the start of `name`, where there is room for it."""
        with self._lock:
            if self._ready(name) >= self.spares:
                return
            if self._lent >= self.limit:
                return
            simulator = self._any()
            self._lent += 1
            self._preparing = True
        try:
            simulator.load(name)
        except EnvError:
            # whoever needs it will meet the error itself
            simulator.name = None
        finally:
            with self._lock:
                self._lent -= 1
                self._idle.append(simulator)
                self._preparing = False
                self._lock.notify_all()


def _prepare(owner: weakref.ref[Simulators], wishes: queue.SimpleQueue[TaskName | None]) -> None:
    """Keep spares ready as long as their owner is there."""
    while (name := wishes.get()) is not None:
        simulators = owner()
        if simulators is None:
            return
        simulators.prepare(name)
        del simulators
