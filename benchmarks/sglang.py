"""Forks in SGLang against resubmission; run in the environment of `make test-sglang`.

Every sample has a prompt of its own: a sibling that finished earlier would leave its KV in the
radix tree and make any later method look free. Variants take turns, in rotated order.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engine import VOCAB
from benchmarks.harness import Case
from benchmarks.served import server, tree_model, trees
from benchmarks.sglang_cost import costs
from benchmarks.sglang_engine import (
    ENGINES,
    NAMES,
    SETTINGS,
    SHAPE,
    SMALL,
    Engine,
    as_case,
    running,
    save_model,
)

PROMPT = 512
SHAPES = {16: ((64, 4), (192, 4), (512, 16)), 1: ((192, 8),)}
"""Page size -> tokens of the parent beyond its prompt, children."""


@dataclass
class Parent:
    """A running request that is forked at `tail` tokens beyond its prompt."""

    rid: str
    prompt: list[int]
    output: list[int]
    task: asyncio.Task[None] | None = None


async def parents(engine: Engine, number: int, tail: int, member: bool) -> list[Parent]:
    """Return requests of fresh prompts that have `tail` tokens and run on."""
    found = []

    async def follow(parent: Parent, ready: asyncio.Event) -> None:
        spark = {"tree": parent.rid} if member else None
        async for step in engine.stream(parent.prompt, tail + 1000, parent.rid, spark):
            if not parent.output and len(step["output_ids"]) >= tail:
                parent.output = list(step["output_ids"][:tail])
                ready.set()

    events = []
    for _ in range(number):
        prompt = torch.randint(SHAPE["vocab_size"], (PROMPT,)).tolist()
        events.append(asyncio.Event())
        parent = Parent(f"parent{next(NAMES):06d}", prompt, [])
        parent.task = asyncio.create_task(follow(parent, events[-1]))
        found.append(parent)
    await asyncio.gather(*(event.wait() for event in events))
    return found


async def fan_out(engine: Engine, parent: Parent, fan: int, fork: bool) -> tuple[float, float]:
    """Return seconds to the last of `fan` children's first tokens, and tokens recomputed each."""
    whole = parent.prompt + parent.output
    spark = {"tree": parent.rid, "parent": parent.rid, "at": len(whole), "output": parent.output}
    start = time.perf_counter()
    if fork:
        kids = [engine.first(parent.prompt, len(parent.output) + 2, spark) for _ in range(fan)]
    else:
        kids = [engine.first(whole, 2) for _ in range(fan)]
    done = await asyncio.gather(*kids)
    outputs = {tuple(step["output_ids"]) for _, step in done}
    assert len(outputs) == 1, "children of one greedy parent differ"
    cached = [step["meta_info"]["cached_tokens"] for _, step in done]
    return max(at for at, _ in done) - start, len(whole) - statistics.fmean(cached)


def fork_cases(
    engines: dict[str, Engine], page: int, tail: int, fan: int, rounds: int
) -> list[Case]:
    """Time the children of a running parent: forked, or sent again with and without a cache."""
    seconds: dict[str, list[float]] = {"ours": [], "radix": [], "disabled": []}
    again: dict[str, list[float]] = {name: [] for name in seconds}

    async def measure(engine: Engine, names: list[str], tail: int, rounds: int) -> None:
        # there and back: those that are measured late have fewer parents beside them
        order = [*names, *reversed(names)] * rounds
        running = await parents(engine, rounds * len(names), tail, "ours" in names)
        for name, parent in zip(order, running, strict=False):
            took, tokens = await fan_out(engine, parent, fan, name == "ours")
            seconds[name].append(took)
            again[name].append(tokens)
            engine.end(parent.rid)
        await asyncio.gather(*(parent.task for parent in running))

    # what computes everything is slow, and in no doubt
    kinds = {"spark": (["ours", "radix"], rounds), "disabled": (["disabled"], rounds // 2)}
    for name, (ways, times) in kinds.items():
        if (engine := engines.get(name)) is None:
            continue
        engine.run(measure(engine, ways, 8, 1))
        # whatever the first of its kind had to load
        for way in ways:
            del seconds[way][0], again[way][0]
        engine.run(measure(engine, ways, tail, times))
    case = {"page": page, "tail": tail, "children": fan, "prompt": PROMPT}
    target = {"radix": 1 / 0.6} if tail >= 192 else {}
    first = as_case("last child's first token", case, seconds, 1e3, "ms", target)
    return [first, as_case("tokens recomputed per child", case, again, 1, "tokens", {}, most=1)]


def run(quick: bool = False) -> list[Case]:
    """Return the cases of forks, of the plugin's cost, and of whole trees."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = save_model(folder / "random", SMALL if quick else SHAPE)
        cases = []
        with running(model, 16, *ENGINES) as engines:
            cases += forks(engines, 16, quick)
        if not quick:
            with running(model, 1, "spark") as engines:
                cases += forks(engines, 1, quick)
        return [*cases, *costs(model, quick), *whole_trees(folder, quick)]


def forks(engines: dict[str, Engine], page: int, quick: bool) -> list[Case]:
    """Compare the ways to give a running parent children."""
    shapes, rounds = ([(192, 4)], 2) if quick else (SHAPES[page], 4)
    return [c for shape in shapes for c in fork_cases(engines, page, *shape, rounds)]


def whole_trees(folder: Path, quick: bool) -> list[Case]:
    """Time trees on SGLang's own server, branching inside it or in the client."""
    given = ((f"--{name.replace('_', '-')}", value) for name, value in SETTINGS.items())
    flags = [name if value is True else f"{name}={value}" for name, value in given]
    # SGLang warms up on a text, of which this tokenizer makes nothing
    flags += ["--skip-server-warmup", "--page-size=16", "--engine=sglang"]
    with server(tree_model(folder), *flags) as url:
        return trees(url, VOCAB, quick)
