"""What the plugin costs in SGLang where nothing branches: one engine with and without its hooks."""

from __future__ import annotations

import asyncio
import pkgutil
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from benchmarks.harness import Case
from benchmarks.own_time import OwnTime
from benchmarks.sglang_engine import SHAPE, Engine, as_case, running

REQUESTS = 16
WAYS: dict[str, tuple[bool, Any]] = {
    "scored": (True, {"score": True}),
    "idle": (True, None),
    "stock": (False, None),
}
"""Whether the hooks are in place, and what a request says."""
_kept: dict[str, Any] = {}


def costs(model: Path, quick: bool) -> list[Case]:
    """Compare ordinary requests on SGLang as it is, beside the idle plugin, and scored.

    The hooks come and go in one engine: two processes of the same engine differ for as long as they
    live. Waves of requests still differ by more than an idle plugin costs; so the time in its
    functions is taken as well.
    """
    new, rounds = (16, 2) if quick else (16, 40)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    shares: dict[str, list[float]] = {"scored": [], "idle": []}
    with running(model, 16, "spark", scheduler=run_scheduler) as engines:
        engine = engines["spark"]
        said = [wave(engine, *way, new)[1] for way in WAYS.values()]
        assert said == said[:1] * len(WAYS), "the plugin changed what is sampled"
        for turn in range(rounds):
            for name in [*WAYS][turn % 3 :] + [*WAYS][: turn % 3]:
                seconds[name].append(wave(engine, *WAYS[name], new)[0])
                if name in shares:
                    shares[name].append(own_seconds(engine) / seconds[name][-1])
    case = {"requests": REQUESTS, "new tokens": new}
    times = {name: {"ours": seconds[name], "stock": seconds["stock"]} for name in WAYS}
    found = []
    for name, what, most in (("scored", "all tokens scored", 3), ("idle", "plugin idle", 1)):
        own, asked = {"ours": shares[name]}, {"stock": 1 / (1 + most / 100)}
        found.append(as_case(what, case, times[name], 1e3, "ms", asked))
        found.append(as_case(what, case, own, 100, "% in its functions", {}, most=most))
    return found


def wave(engine: Engine, hooked: bool, spark: Any, new: int) -> tuple[float, list[list[int]]]:
    """Return the seconds that the requests take together, and their tokens."""
    engine.engine.collective_rpc("switch_hooks", on=hooked)
    make = torch.Generator().manual_seed(0)
    prompts = torch.randint(SHAPE["vocab_size"], (REQUESTS, 32), generator=make).tolist()

    async def all_of_them() -> Any:
        return await asyncio.gather(*(engine.first(tokens, new, spark) for tokens in prompts))

    start = time.perf_counter()
    answers = engine.run(all_of_them())
    took = time.perf_counter() - start
    scored = ["spark_entropy" in step["meta_info"] for _, step in answers]
    assert scored == [hooked and spark is not None] * REQUESTS
    return took, [list(step["output_ids"]) for _, step in answers]


def own_seconds(engine: Engine) -> float:
    """Return the seconds that the scheduler has been in the plugin's functions in this wave."""
    with tempfile.NamedTemporaryFile() as file:
        engine.engine.collective_rpc("write_own_time", path=file.name)
        return float(Path(file.name).read_text())


def run_scheduler(*arguments: Any, **named: Any) -> Any:
    """Run SGLang's scheduler process with hooks that are timed and can be switched."""
    from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process
    from sglang.srt.plugins.hook_registry import HookRegistry

    own = OwnTime()
    HookRegistry.register = partial(register, HookRegistry.register, own)
    Scheduler.write_own_time = lambda _, path: Path(path).write_text(str(own.seconds))
    Scheduler.switch_hooks = lambda scheduler, on: switch_hooks(scheduler, on, own)
    return run_scheduler_process(*arguments, **named)


def register(
    original: Callable[..., Any], own: OwnTime, target: str, hook: Any, kind: Any, **more: Any
) -> None:
    """Register `hook` so that `own` knows how long it takes by itself."""

    @wraps(hook)
    def around(stock: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return hook(own.theirs(stock), *arguments, **named)

    original(target, own.ours(around if kind.value == "around" else hook), kind, **more)


def switch_hooks(scheduler: Any, on: bool, own: OwnTime) -> None:
    """Put the plugin's functions in place, or SGLang's own; begin to count anew."""
    from sglang.srt.plugins.hook_registry import HookRegistry, _propagate_patch

    own.seconds = 0.0
    for target, hooks in HookRegistry._hooks.items():
        path, name = target.rsplit(".", 1)
        owner = pkgutil.resolve_name(path)
        now = owner.__dict__[name]
        if isinstance(now, staticmethod | classmethod):
            # of the command line
            continue
        wanted = _kept.setdefault(target, now)
        for _ in () if on else hooks:
            wanted = wanted.__wrapped__
        setattr(owner, name, wanted)
        _propagate_patch(now, wanted, owner)
    switch_sampling(scheduler.tp_worker.model_runner, on, own)


def switch_sampling(runner: Any, on: bool, own: OwnTime) -> None:
    """The same for what has no hook: the sampler and its observer."""
    kind, stock = type(runner.sampler).__mro__[:2]
    if "observer" not in _kept:
        _kept["observer"] = observer = runner.sampling_observer
        for name in ("is_active", "before_grammar", "after_sample"):
            setattr(observer, name, own.ours(getattr(observer, name)))
        kind.forward, stock.forward = own.ours(kind.forward), own.theirs(stock.forward)
    runner.sampling_observer = _kept["observer"] if on else None
    forward: Callable[..., Any] = (kind if on else stock).forward
    runner.sampler.forward = MethodType(forward, runner.sampler)
