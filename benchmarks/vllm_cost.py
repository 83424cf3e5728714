"""What the plugin costs where nothing branches: vLLM with and without it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from inspect import unwrap
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

from benchmarks.harness import Case
from benchmarks.own_time import OwnTime
from benchmarks.served import timing
from benchmarks.vllm_engine import engine, prompt, saved
from spark.engines.vllm.hooks import MARK

SEQUENCES = 16
# model, new tokens, rounds
LOADS = (("1M", 32, 120), ("27M", 32, 30))
QUICK = (("1M", 32, 5),)


def costs(folder: Path, quick: bool) -> list[Case]:
    """Decode throughput with the plugin off, idle and scoring every token, against vLLM as it is.

    The plugin's methods come and go in one process: two processes of the same engine differ for as
    long as they live. Waves still differ by more than an idle plugin costs; so the time in its
    methods is taken too, less that of the sampler which they stand for.
    """
    from spark.engines.vllm.branch import Branch

    cases = []
    for size, new, rounds in QUICK if quick else LOADS:
        model = saved(folder, size)
        with apart(model, None) as plain:
            want = plain(True, SEQUENCES, new)
        with apart(model, {"branching": "none"}) as off, apart(model, {"branching": "spark"}) as on:
            for call, hooked in product((off, on), (True, False)):
                assert call(hooked, SEQUENCES, new) == want, "the plugin changed what is sampled"
            for what, call, branch, least, most in (
                ("off", off, None, 0.99, None),
                ("idle", on, None, 0.99, 1),
                ("scoring", on, Branch(), 0.97, 3),
            ):
                ours = partial(call, True, SEQUENCES, new, branch, 1.0)
                stock = partial(call, False, SEQUENCES, new, None, 1.0)
                waves = {"ours": ours, "vllm": stock}
                seconds, own = in_turns(waves, call, rounds)
                cases.append(throughput(what, size, seconds, new, least))
                if most is not None:
                    cases.append(net_share(what, size, seconds["ours"], own, most))
    return cases


def in_turns(
    waves: Mapping[str, Callable[[], Any]], call: Apart, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of every wave, and those that its process counted as `own`."""
    seconds: dict[str, list[float]] = {name: [] for name in waves}
    own: dict[str, list[float]] = {name: [] for name in waves}
    for turn in range(rounds + 1):
        for name, wave in waves.items():
            start = time.perf_counter()
            wave()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                own[name].append(call.own_seconds)
    return seconds, own


def throughput(
    what: str, size: str, seconds: dict[str, list[float]], new: int, least: float
) -> Case:
    """Compare both; `least`: the share of vLLM's throughput that is asked for."""
    rates = {name: timing(took).rate(SEQUENCES * new) for name, took in seconds.items()}
    ratio = rates["ours"].median / rates["vllm"].median
    return Case(
        op=what,
        case={"model": size, "sequences": SEQUENCES},
        metric="throughput",
        unit="tokens/s",
        ours=rates["ours"],
        baselines={"vllm": rates["vllm"]},
        ratio={"vllm": ratio},
        target={"vllm": least},
        met=ratio >= least,
    )


def net_share(
    what: str, size: str, seconds: list[float], own: dict[str, list[float]], most: float
) -> Case:
    """Return what the plugin's methods add to a wave, in per cent of it; `most` is asked for."""
    unit = "% in its methods"
    waves = zip(seconds, own["ours"], own["vllm"], strict=True)
    shares = timing([100 * (ours - replaced) / took for took, ours, replaced in waves])
    return Case(
        op=what,
        case={"model": size, "sequences": SEQUENCES},
        metric="share",
        unit=unit,
        ours=shares,
        target={unit: most},
        met=shares.median <= most,
    )


def without(made: Any, own: OwnTime, *arguments: Any) -> list[list[int]]:
    """Decode with vLLM's own methods put back for that time; `own` counts its sampler."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    scheduler, forks = made.scheduler, getattr(made.scheduler, "forks", None)
    runner = made.core.model_executor.driver_worker.worker.model_runner
    with ExitStack() as stack:
        for thing in (runner, runner.sampler, scheduler):
            put_back(stack, thing)
        if forks is not None:
            manager = scheduler.kv_cache_manager
            stack.enter_context(patch.object(manager, "get_computed_blocks", forks._find))
            stack.enter_context(patch.object(manager, "allocate_slots", forks._allocate))
        for owner, name in (
            (InputProcessor, "process_inputs"),
            (OutputProcessor, "process_outputs"),
            (RequestState, "_new_completion_output"),
        ):
            if hasattr(method := getattr(owner, name), MARK):
                stack.enter_context(patch.object(owner, name, method.__wrapped__))
        sampler = runner.sampler
        sample = MethodType(unwrap(sampler.forward.__func__), sampler)
        stack.enter_context(patch.object(sampler, "forward", own.ours(sample)))
        return decode(made, *arguments)


def count_own_time(made: Any, own: OwnTime) -> None:
    """Let `own` count the plugin's methods, from now on."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    runner = made.core.model_executor.driver_worker.worker.model_runner
    for thing in (runner, runner.sampler, made.scheduler):
        order = type(thing).__mro__
        for kind in order:
            if not kind.__module__.startswith("spark."):
                continue
            behind = order[order.index(kind) + 1 :]
            for name in overridden(kind, behind):
                stock = next(each for each in behind if name in vars(each))
                setattr(stock, name, own.theirs(vars(stock)[name]))
                setattr(kind, name, own.ours(vars(kind)[name]))
    forks, manager = made.scheduler.forks, made.scheduler.kv_cache_manager
    forks._find, forks._allocate = own.theirs(forks._find), own.theirs(forks._allocate)
    manager.get_computed_blocks = own.ours(forks._computed_blocks)
    manager.allocate_slots = own.ours(forks._allocate_slots)
    for owner, name in (
        (InputProcessor, "process_inputs"),
        (OutputProcessor, "process_outputs"),
        (RequestState, "_new_completion_output"),
    ):
        wrapped = getattr(owner, name)
        hook = partial(getattr(wrapped, MARK), own.theirs(wrapped.__wrapped__))
        setattr(owner, name, wraps(wrapped)(own.ours(lambda *a, _hook=hook, **k: _hook(*a, **k))))


def overridden(kind: type, behind: Sequence[type]) -> list[str]:
    """Return the names of the methods of `kind` that one of the classes `behind` it has too."""
    names = [name for name, value in vars(kind).items() if callable(value)]
    return [n for n in names if n[:2] != "__" and any(n in vars(each) for each in behind)]


def put_back(stack: ExitStack, thing: Any) -> None:
    """Let vLLM's methods of `thing`, an object of ours, answer in the place of our own."""
    ours = [kind for kind in type(thing).__mro__ if kind.__module__.startswith("spark.")]
    stock = next(kind for kind in type(thing).__mro__ if kind.__module__.startswith("vllm."))
    for name in {name for kind in ours for name, value in vars(kind).items() if callable(value)}:
        if hasattr(stock, name) and not name.startswith("__"):
            method = MethodType(getattr(stock, name), thing)
            stack.enter_context(patch.object(thing, name, method))


class Apart:
    """An engine in another process."""

    def __init__(self, there: Connection) -> None:
        self._there = there
        self.own_seconds = 0.0
        """What the plugin's methods took in the last call; without them, vLLM's sampler."""

    def __call__(self, hooked: bool, *arguments: Any) -> list[list[int]]:
        """Decode with the plugin's methods in place, or not."""
        self._there.send((hooked, *arguments))
        tokens: list[list[int]]
        tokens, self.own_seconds = self._there.recv()
        return tokens


@contextmanager
def apart(model: Path, branching: dict[str, str] | None) -> Iterator[Apart]:
    """Yield what decodes on vLLM in a process of its own, as hooks are a whole process's.

    `branching`: the plugin's options; None = vLLM does not even load it.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer_calls, args=(model, branching, there))
    process.start()

    try:
        yield Apart(here)
    finally:
        here.send(None)
        process.join()


def answer_calls(model: Path, branching: dict[str, str] | None, calls: Connection) -> None:
    """Decode as often as asked; None ends it."""
    if branching is None:
        os.environ["VLLM_PLUGINS"] = ""
    own = OwnTime()
    with engine(model, branching=branching or {}, block=128, length=512) as made:
        if hasattr(made.scheduler, "forks"):
            count_own_time(made, own)
        for hooked, *arguments in iter(calls.recv, None):
            own.seconds = 0.0
            tokens = decode(made, *arguments) if hooked else without(made, own, *arguments)
            calls.send((tokens, own.seconds))


def decode(
    made: Any, sequences: int, new: int, branch: Any = None, temperature: float = 0.0
) -> list[list[int]]:
    """Return the continuations of `sequences` short prompts."""
    for index in range(sequences):
        made.add(
            str(index),
            prompt(8 + index),
            branch,
            temperature=temperature,
            max_tokens=new,
            detokenize=False,
        )
    made.finish()
    return [made.streams.pop(str(index)).tokens for index in range(sequences)]
