"""Forks in SGLang against resubmission; run in the environment of `make test-sglang`.

Every sample has a prompt of its own: a sibling that finished earlier would leave its KV in the
radix tree and make any later method look free. Variants take turns, in rotated order.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import VOCAB
from benchmarks.harness import Case
from benchmarks.served import server, timing, tree_model, trees
from spark.engines.sglang.fork import RELEASE

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SMALL = {**SHAPE, "hidden_size": 64, "num_hidden_layers": 2}
SETTINGS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "dtype": "float32",
    "mem_fraction_static": 0.1,
    "max_total_tokens": 65536,
    "cuda_graph_backend_decode": "disabled",
    "cuda_graph_backend_prefill": "disabled",
    "sleep_on_idle": True,
    "log_level": "error",
    "random_seed": 0,
}
STOCK = {"branching": "none"}
ENGINES = {
    "spark": {"branching": "spark"},
    "stock": STOCK,
    "disabled": {**STOCK, "disable_radix_cache": True},
}
"""What takes turns: with the plugin, without it, and without SGLang's own prefix cache."""
PROMPT = 512
SHAPES = {16: ((64, 4), (192, 4), (512, 16)), 1: ((192, 8),)}
"""Page size -> tokens of the parent beyond its prompt, children."""
_NAMES = count()


class Engine:
    """Stock SGLang, with or without the plugin."""

    def __init__(self, model: Path, branching: str, **settings: Any) -> None:
        import sglang

        how = {**SETTINGS, **settings, "branching": branching}
        self.engine = sglang.Engine(model_path=str(model), **how)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.loop.run_until_complete(work)

    async def stream(
        self, tokens: list[int], new: int, rid: str, spark: dict[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        params: dict[str, Any] = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
        if spark:
            params["custom_params"] = {"spark": spark}
        steps = await self.engine.async_generate(
            input_ids=tokens, sampling_params=params, stream=True, rid=rid
        )
        async for step in steps:
            yield step

    async def first(self, tokens: list[int], new: int, spark: Any = None) -> tuple[float, Any]:
        """Return the time of the first token, and the last step."""
        steps = []
        async for step in self.stream(tokens, new, f"child{next(_NAMES):06d}", spark):
            steps.append((time.perf_counter(), step))
        return steps[0][0], steps[-1][1]

    def end(self, rid: str) -> None:
        """Stop a request, and let go of the tree that is named after it."""
        from sglang.srt.managers.io_struct import AbortReq

        manager = self.engine.tokenizer_manager
        manager.abort_request(rid=rid)
        manager._dispatch_to_scheduler(AbortReq(rid=RELEASE + rid))


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
        parent = Parent(f"parent{next(_NAMES):06d}", prompt, [])
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


def throughput_cases(model: Path, pairs: int, rounds: int, new: int) -> list[Case]:
    """Compare 16 ordinary requests on stock SGLang, beside the idle plugin, and scored."""
    seconds: dict[str, list[float]] = {"ours": [], "stock": [], "idle plugin": []}
    ways: dict[str, tuple[str, Any]] = {"ours": ("spark", {"score": True})}
    ways |= {"idle plugin": ("spark", None), "stock": ("stock", None)}
    for _ in range(pairs):
        # fresh ones: two processes of the same engine differ by some per cent
        with running(model, 16, "spark", "stock") as engines:
            for turn in range(rounds + 1):
                for name in [*ways][turn % 3 :] + [*ways][: turn % 3]:
                    kind, spark = ways[name]
                    took = engines[kind].run(wave(engines[kind], new, spark))
                    seconds[name] += [took] if turn else []
    case = {"requests": 16, "new tokens": new, "engines": pairs}
    scored = as_case("all tokens scored", case, seconds, 1e3, "ms", {"stock": 1 / 1.03})
    idle = {"ours": seconds["idle plugin"], "stock": seconds["stock"]}
    return [scored, as_case("plugin idle", case, idle, 1e3, "ms", {"stock": 1 / 1.01})]


async def wave(engine: Engine, new: int, spark: Any) -> float:
    """Return the seconds that 16 requests of `new` tokens take together."""
    start = time.perf_counter()
    prompts = torch.randint(SHAPE["vocab_size"], (16, 32)).tolist()
    await asyncio.gather(*(engine.first(tokens, new, spark) for tokens in prompts))
    return time.perf_counter() - start


def as_case(
    op: str,
    case: dict[str, Any],
    samples: dict[str, list[float]],
    factor: float,
    unit: str,
    targets: dict[str, float],
    most: float | None = None,
) -> Case:
    """Return medians, spreads and ratios of `samples`."""
    times = {name: timing(values).scaled(factor) for name, values in samples.items() if values}
    ours = times.pop("ours")
    ratio = {name: other.median / max(ours.median, 1e-9) for name, other in times.items()}
    met = all(ratio[name] >= least for name, least in targets.items())
    if most is not None:
        met = ours.max <= most
    judged = bool(targets) or most is not None
    return Case(
        op=op,
        case=case,
        metric="time" if unit == "ms" else "tokens",
        unit=unit,
        ours=ours,
        baselines=times,
        ratio=ratio if unit == "ms" else {},
        target=(targets or {unit: most}) if judged else None,
        met=met if judged else None,
    )


def save_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a random Qwen3 of `shape` with a byte tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", bos_token_id=None, eos_token_id=None, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocab = {f"t{i}": i for i in range(shape["vocab_size"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


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
        cases += throughput_cases(model, *((1, 2, 16) if quick else (10, 3, 32)))
        return [*cases, *whole_trees(folder, quick)]


@contextmanager
def running(model: Path, page: int, *names: str) -> Iterator[dict[str, Engine]]:
    """Run several of `ENGINES`."""
    from spark.serve.sglang.engine import stop

    how = {"page_size": page, "max_total_tokens": 32768}
    started = {name: Engine(model, **ENGINES[name], **how) for name in names}
    try:
        yield started
    finally:
        for engine in started.values():
            stop(engine.engine)


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
