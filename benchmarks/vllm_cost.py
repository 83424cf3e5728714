"""What the plugin costs where nothing branches: vLLM with and without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

from benchmarks.harness import Case, interleave
from benchmarks.vllm_engine import engine, prompt, saved
from spark.engines.vllm.hooks import MARK

SEQUENCES = 16
# model, new tokens, rounds
LOADS = (("1M", 32, 120), ("27M", 32, 30))
QUICK = (("1M", 32, 5),)


def costs(folder: Path, quick: bool) -> list[Case]:
    """Decode throughput with the plugin off, idle and scoring every token, against vLLM as it is.

    The plugin's methods come and go in one process: two processes of the same engine differ by 2 to
    5 % for as long as they live.
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
            for what, call, branch, least in (
                ("off", off, None, 0.99),
                ("idle", on, None, 0.99),
                ("scoring", on, Branch(), 0.97),
            ):
                run = partial(call, True, SEQUENCES, new, branch, 1.0)
                base = partial(call, False, SEQUENCES, new, None, 1.0)
                cases.append(compared(what, size, run, base, rounds, new, least))
    return cases


def compared(
    what: str,
    size: str,
    ours: Callable[[], Any],
    stock: Callable[[], Any],
    rounds: int,
    new: int,
    least: float,
) -> Case:
    """Time both in turns; `least`: the share of vLLM's throughput that is asked for."""
    times = interleave({"ours": ours, "vllm": stock}, rounds=rounds, warmup=1)
    rates = {name: t.rate(SEQUENCES * new) for name, t in times.items()}
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


def without(made: Any, *arguments: Any) -> list[list[int]]:
    """Decode with vLLM's own methods put back for that time."""
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
        return decode(made, *arguments)


def put_back(stack: ExitStack, thing: Any) -> None:
    """Let vLLM's methods of `thing`, an object of ours, answer in the place of our own."""
    ours = [kind for kind in type(thing).__mro__ if kind.__module__.startswith("spark.")]
    stock = next(kind for kind in type(thing).__mro__ if kind.__module__.startswith("vllm."))
    for name in {name for kind in ours for name, value in vars(kind).items() if callable(value)}:
        if hasattr(stock, name) and not name.startswith("__"):
            method = MethodType(getattr(stock, name), thing)
            stack.enter_context(patch.object(thing, name, method))


@contextmanager
def apart(model: Path, branching: dict[str, str] | None) -> Iterator[Any]:
    """Yield what decodes on vLLM in a process of its own, as hooks are a whole process's.

    `branching`: the plugin's options; None = vLLM does not even load it. The first argument of a
    call is whether the plugin's methods are in place.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer_calls, args=(model, branching, there))
    process.start()

    def call(*arguments: Any) -> list[list[int]]:
        here.send(arguments)
        tokens: list[list[int]] = here.recv()
        return tokens

    try:
        yield call
    finally:
        here.send(None)
        process.join()


def answer_calls(model: Path, branching: dict[str, str] | None, calls: Connection) -> None:
    """Decode as often as asked; None ends it."""
    if branching is None:
        os.environ["VLLM_PLUGINS"] = ""
    with engine(model, branching=branching or {}, block=128, length=512) as made:
        for hooked, *arguments in iter(calls.recv, None):
            calls.send((decode if hooked else without)(made, *arguments))


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
