"""vLLM with Spark inside: forks against resubmission, whole trees, and what the plugin costs.

Runs in the vLLM environment: `.venv-vllm/bin/python -m benchmarks --suite vllm`.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engine import VOCAB
from benchmarks.harness import Case
from benchmarks.served import server, timing, tree_model, trees
from benchmarks.vllm_cost import costs
from benchmarks.vllm_engine import ENVIRONMENT, engine, prompt, saved

BEFORE = 4
"""Tokens that the parent has sampled when its children come."""
# model, block size, prefix, children, rounds
FORKS = (
    ("27M", 128, 512, 4, 5),
    ("27M", 128, 1024, 8, 3),
    ("27M", 32, 512, 4, 5),
    ("1M", 128, 512, 8, 25),
    ("1M", 128, 2048, 8, 5),
    ("1M", 128, 4096, 16, 5),
    ("1M", 32, 512, 8, 25),
    ("1M", 32, 2048, 8, 5),
)
QUICK = (("1M", 128, 512, 8, 5), ("1M", 32, 512, 8, 5))


def run(quick: bool = False) -> list[Case]:
    """Return the cases of forks, then those of the plugin's cost, then those of whole trees."""
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = forks(folder, QUICK if quick else FORKS)
        return [*cases, *costs(folder, quick), *whole_trees(folder, quick)]


def whole_trees(folder: Path, quick: bool) -> list[Case]:
    """Time trees on vLLM's own server, branching inside it or in the client."""
    model = tree_model(folder)
    flags = ["--engine", "vllm", "--dtype", "float32", "--enforce-eager", "--block-size", "128"]
    flags += ["--max-model-len", "4096", "--num-gpu-blocks-override", "512"]
    # the server's engine core has a process of its own, as it has for users
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with server(model, *flags) as url:
        return trees(url, VOCAB, quick)


def forks(folder: Path, wanted: tuple[Any, ...]) -> list[Case]:
    """Compare three ways to start children of a running parent at its tip.

    The prefix ends in the middle of a block: the mean case of prefix caching.
    """
    cases = []
    for size, block, prefix, children, rounds in wanted:
        model = saved(folder, size)
        with engine(model, branching={"branching": "spark"}, block=block, length=8192) as made:
            cases += first_tokens(made, size, block, prefix + block // 2, children, rounds)
    return cases


def first_tokens(
    made: Any, size: str, block: int, prefix: int, children: int, rounds: int
) -> list[Case]:
    """Time from the fork to the last child's first token; count what children computed again."""
    seconds: dict[str, list[float]] = {"ours": [], "prefix_cache": [], "no_cache": []}
    again: dict[str, list[float]] = {name: [] for name in seconds}
    start = prompt(prefix - BEFORE)
    for number in range(rounds + 1):
        said = set()
        for name, took in seconds.items():
            if name == "no_cache" and number not in (1, 2):
                # half a minute each where it is long
                continue
            spent, tokens, recomputed = children_of(made, start, children, name)
            said.add(tokens)
            if number:
                took.append(spent)
                again[name].append(recomputed)
        assert len(said) == 1, f"the children differ: {said}"
    case = {"model": size, "block": block, "prefix": prefix, "children": children}
    times = {name: timing(values).scaled(1e3) for name, values in seconds.items()}
    counts = {name: timing(values) for name, values in again.items()}
    target = {"prefix_cache": 3.0} if block == 128 else None
    mine, own = times.pop("ours"), counts.pop("ours")
    ratio = {name: other.median / mine.median for name, other in times.items()}
    return [
        Case(
            op="first_tokens",
            case=case,
            metric="time",
            unit="ms",
            ours=mine,
            baselines=times,
            ratio=ratio,
            target=target,
            met=ratio["prefix_cache"] >= 3.0 if target else None,
        ),
        Case(
            op="recomputed",
            case=case,
            metric="tokens per child",
            unit="tokens",
            ours=own,
            baselines=counts,
            ratio={name: other.median / own.median for name, other in counts.items()},
            target={"tokens": 1},
            met=own.max <= 1,
        ),
    ]


def children_of(
    made: Any, start: list[int], children: int, name: str
) -> tuple[float, tuple[int, ...], float]:
    """Return seconds, the first tokens and how many tokens a child computed again."""
    from spark.engines.vllm.branch import Branch

    made.reset()
    made.add("parent", start, Branch(name="p"), max_tokens=64, detokenize=False)
    made.until("parent", BEFORE)
    whole = start + made.streams["parent"].tokens[:BEFORE]
    # a parent that nobody knows: the engine falls back to its prefix cache and says so
    parent = "p" if name == "ours" else "nobody"
    begun = time.perf_counter()
    for child in range(children):
        branch = Branch(parent=parent, fork_at=len(whole))
        extra = {"skip_reading_prefix_cache": True} if name == "no_cache" else {}
        made.add(f"c{child}", whole, branch, max_tokens=1, detokenize=False, **extra)
    while any(not made.streams[f"c{child}"].tokens for child in range(children)):
        made.step()
    took = time.perf_counter() - begun
    made.abort("parent")
    del made.streams["parent"]
    streams = [made.streams.pop(f"c{child}") for child in range(children)]
    again = sum(stream.scores.recomputed for stream in streams) / children
    return took, tuple(stream.tokens[0] for stream in streams), again
