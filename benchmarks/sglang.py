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
from benchmarks.harness import Case, Timing
from benchmarks.served import server, tree_model, trees

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
PROMPT = 512
# quick -> page sizes
PAGES = {True: (16,), False: (1, 16)}
# tokens of the parent beyond its prompt, children
SHAPES = ((192, 4), (192, 16), (512, 8))
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

    def abort(self, rid: str) -> None:
        self.engine.tokenizer_manager.abort_request(rid=rid)


@dataclass
class Parent:
    """A running request that is forked at `tail` tokens beyond its prompt."""

    rid: str
    prompt: list[int]
    output: list[int]
    task: asyncio.Task[None]


async def parents(engine: Engine, number: int, tail: int, member: bool) -> list[Parent]:
    """Return requests of fresh prompts that have `tail` tokens and run on."""
    found = []

    async def follow(parent: Parent, ready: asyncio.Event) -> None:
        spark = {"tree": parent.rid} if member else None
        async for step in engine.stream(parent.prompt, 3000, parent.rid, spark):
            if not parent.output and len(step["output_ids"]) >= tail:
                parent.output = list(step["output_ids"][:tail])
                ready.set()

    events = []
    for _ in range(number):
        prompt = torch.randint(SHAPE["vocab_size"], (PROMPT,)).tolist()
        events.append(asyncio.Event())
        parent = Parent(f"parent{next(_NAMES):06d}", prompt, [], None)  # type: ignore[arg-type]
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
    """Compare the three ways of giving a running parent `fan` children."""
    seconds: dict[str, list[float]] = {"ours": [], "radix": [], "disabled": []}
    again: dict[str, list[float]] = {name: [] for name in seconds}

    async def measure(engine: Engine, names: list[str]) -> None:
        running = await parents(engine, rounds * len(names), tail, "ours" in names)
        for turn, parent in enumerate(running):
            name = names[turn % len(names)]
            took, recomputed = await fan_out(engine, parent, fan, name == "ours")
            seconds[name].append(took)
            again[name].append(recomputed)
            engine.abort(parent.rid)
        await asyncio.gather(*(parent.task for parent in running))

    engines["spark"].run(measure(engines["spark"], ["ours", "radix"]))
    engines["disabled"].run(measure(engines["disabled"], ["disabled"]))
    case = {"page": page, "tail": tail, "children": fan, "prompt": PROMPT}
    return [
        as_case("last child's first token", case, seconds, 1e3, "ms", {"radix": 1 / 0.6}),
        as_case("tokens recomputed per child", case, again, 1, "tokens", {}, most=1),
    ]


def throughput_cases(engines: dict[str, Engine], rounds: int, new: int) -> list[Case]:
    """Compare 16 ordinary requests on stock SGLang, beside the idle plugin, and scored."""
    seconds: dict[str, list[float]] = {"ours": [], "stock": [], "idle plugin": []}

    async def wave(engine: Engine, spark: Any) -> float:
        prompts = torch.randint(SHAPE["vocab_size"], (16, 32)).tolist()
        start = time.perf_counter()
        await asyncio.gather(*(engine.first(tokens, new, spark) for tokens in prompts))
        return time.perf_counter() - start

    ways = {"ours": ("spark", {"score": True}), "idle plugin": ("spark", None)}
    ways["stock"] = ("stock", None)
    names = list(ways)
    for turn in range(rounds + 1):
        for name in names[turn % 3 :] + names[: turn % 3]:
            engine, spark = ways[name]
            took = engines[engine].run(wave(engines[engine], spark))
            if turn:
                seconds[name].append(took)
    case = {"requests": 16, "new tokens": new}
    scored = as_case("all tokens scored", case, seconds, 1e3, "ms", {"stock": 1 / 1.03})
    idle = {"ours": seconds["idle plugin"], "stock": seconds["stock"]}
    return [scored, as_case("plugin idle", case, idle, 1e3, "ms", {"stock": 1 / 1.01})]


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
    times = {
        name: Timing(statistics.median(s), min(s), max(s), len(s)).scaled(factor)
        for name, s in samples.items()
        if s
    }
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
        cases = [case for page in PAGES[quick] for case in forks(folder, page, quick)]
        return [*cases, *costs(folder, quick), *whole_trees(folder, quick)]


@contextmanager
def running(
    folder: Path, page: int, quick: bool, **engines: dict[str, Any]
) -> Iterator[dict[str, Engine]]:
    """Run SGLang several times on one model: name -> its settings."""
    from spark.serve.sglang.engine import stop

    torch.manual_seed(page)
    model = save_model(folder / "random", SMALL if quick else SHAPE)
    started = {
        name: Engine(model, page_size=page, **settings) for name, settings in engines.items()
    }
    try:
        yield started
    finally:
        for engine in started.values():
            stop(engine.engine)


def forks(folder: Path, page: int, quick: bool) -> list[Case]:
    """Compare three ways to give a running parent children."""
    without = {"branching": "none", "disable_radix_cache": True}
    with running(folder, page, quick, spark={"branching": "spark"}, disabled=without) as engines:
        shapes = [(192, 4)] if quick else SHAPES
        rounds = 2 if quick else 3
        return [c for shape in shapes for c in fork_cases(engines, page, *shape, rounds)]


def costs(folder: Path, quick: bool) -> list[Case]:
    """Compare ordinary traffic beside the plugin, idle or scoring, with stock SGLang."""
    ways = {"spark": {"branching": "spark"}, "stock": {"branching": "none"}}
    with running(folder, 16, quick, **ways) as engines:
        return throughput_cases(engines, 2 if quick else 9, 16 if quick else 48)


def whole_trees(folder: Path, quick: bool) -> list[Case]:
    """Time trees on SGLang's own server, branching inside it or in the client."""
    model = tree_model(folder)
    served = {name: value for name, value in SETTINGS.items() if not isinstance(value, bool)}
    flags = [
        word
        for name, value in served.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    flags += ["--sleep-on-idle", "--skip-server-warmup", "--page-size", "16"]
    with server(model, "--engine", "sglang", *flags) as url:
        return trees(url, VOCAB, quick)
