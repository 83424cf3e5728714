"""One Java virtual machine with many of ScienceWorld's simulators in it."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JError
from scienceworld.constants import BASEPATH, JAR_PATH

from spark.envs.base import EnvError
from spark.envs.scienceworld.options import TaskName

HEAP_MB, SIMULATOR_MB = 64, 24
SPLITS = ("train", "dev", "test")
"""ScienceWorld's own."""
# the simulator keeps objects in sets ordered by identity hash, which Java draws at random; with one
# hash for all objects the order is that of insertion, so that actions can be repeated
FIXED_ORDER = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
JAVA_MISSING = (
    "ScienceWorld runs in Java, and there is no `java` on the PATH; "
    "run: apt-get install -y openjdk-17-jre-headless"
)


Call = Callable[[Callable[[], Any]], Any]
"""Question to the virtual machine -> its answer."""
Strings = Callable[[Any, str], list[str]]
"""Java object, name of its method -> the strings that this lists."""


class Outcome(NamedTuple):
    """What a step led to."""

    text: str
    score: float
    """1.0 = solved; negative = failed for good."""
    over: bool


class Jvm:
    """A virtual machine; it ends with this object, or with the process.

    One call at a time: the simulators share mutable state while they load.
    """

    def __init__(self, simulators: int) -> None:
        """Start one whose heap holds `simulators`. Raises EnvError where Java is missing."""
        if shutil.which("java") is None:
            raise EnvError(JAVA_MISSING)
        heap = HEAP_MB + SIMULATOR_MB * simulators
        options = [f"-Xmx{heap}m", "-XX:+UseSerialGC", *FIXED_ORDER]
        try:
            port, process = launch_gateway(
                classpath=JAR_PATH,
                cwd=BASEPATH,
                javaopts=options,
                die_on_exit=True,
                return_proc=True,
            )
        except (Py4JError, OSError, ValueError) as error:
            raise EnvError(f"java {' '.join(options)} did not start ({error})") from error
        parameters = GatewayParameters(port=port, auto_field=True)
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end, self._gateway, process)

    def simulator(self) -> Simulator:
        """Return a new simulator with nothing loaded."""

        def make() -> Any:
            return self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

        return Simulator(self.call(make), self.call, self._strings)

    def _strings(self, java: Any, method: str) -> list[str]:
        """Return the strings that `method` lists, in one answer instead of one for each."""

        def join() -> Any:
            strings = getattr(java, method)()
            return self._gateway.jvm.java.lang.String.join("\n", strings)

        joined: str = self.call(join)
        return joined.split("\n") if joined else []

    def call(self, function: Callable[[], Any]) -> Any:
        """Return what the virtual machine answers. Raises EnvError with the first line of its
        complaint.

        `function` also looks up what it calls: the first time that is a question of its own.
        """
        with self._lock:
            if not self._finalizer.alive:
                raise EnvError("ScienceWorld's virtual machine was ended")
            try:
                return function()
            except Py4JError as error:
                told = [line for line in str(error).splitlines() if line.startswith(": ")]
                what = told[0].removeprefix(": ") if told else str(error)
                raise EnvError(f"ScienceWorld's virtual machine failed: {what}") from error

    def close(self) -> None:
        """End the virtual machine; calling it twice is allowed."""
        with self._lock:
            self._finalizer()


class Simulator:
    """One world, at some point of some task."""

    def __init__(self, java: Any, call: Call, strings: Strings) -> None:
        self._java, self._call, self._strings = java, call, strings
        self.name: TaskName | None = None
        """What is loaded."""
        self.start = ""
        """What the player is told at the start."""

    def load(self, name: TaskName, *, gold: bool = False) -> None:
        """Bring it to the start of `name`; `gold` also works out a solution (`gold`)."""
        self._ask("load", *name, gold)
        task = self._ask("getTaskDescription")
        # as the official environment does, whose first move this is
        self.start = f"{task}\n{self.step('look around').text}"
        self.name = name

    def step(self, action: str) -> Outcome:
        """Act."""
        text = self._ask("step", action)
        score = self.score()
        over = bool(self._ask("getCompleted"))
        return Outcome(text, score, over or score < 0)

    def score(self) -> float:
        """Return the score so far."""
        return float(self._ask("getScore"))

    def commands(self) -> list[str]:
        """Return all valid commands, in alphabetical order."""
        return sorted(self._list("getValidActionObjectCombinations"))

    def gold(self) -> list[str]:
        """Return the commands that solve what was loaded with `gold`."""
        return self._list("getGoldActionSequence")

    def variations(self, kind: str, simplifications: str) -> dict[str, list[int]]:
        """Return the official split of a task type's variations: train, dev and test."""
        # simplifications hold for the whole virtual machine, so these must not be others
        self._ask("load", kind, 0, simplifications, False)
        self.name = None
        return {split: self._variations(f"getVariations{split.title()}") for split in SPLITS}

    def _variations(self, method: str) -> list[int]:
        found: list[int] = self._call(lambda: sorted(map(int, getattr(self._java, method)())))
        return found

    def kinds(self) -> list[str]:
        """Return all task types."""
        return self._list("getTaskNames")

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._call(lambda: getattr(self._java, method)(*arguments))

    def _list(self, method: str) -> list[str]:
        return self._strings(self._java, method)


def _end(gateway: JavaGateway, process: Any) -> None:
    # first, so that objects collected later are not looked for in what has ended
    gateway.shutdown()
    process.kill()
    process.wait()
