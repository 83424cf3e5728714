"""The same trees regenerated in three ways: turn by turn from scratch, as chains, with forks.

A tree is recorded by its shape, its observations and one seed per node: every way samples a node
with its seed and so draws the same tokens, which is checked before anything is timed.

naive: each leaf on its own, and every turn prefills the whole conversation again.
chains: each leaf on its own, its KV kept from turn to turn, the prompt's KV shared by all leaves.
forks: what leaves share is computed once; branches are forked where they part.
All leaves run at once in every way; the engine batches whatever is ready.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.engine import VOCAB, random_model
from benchmarks.harness import Case, Timing, interleave
from spark import LocalEngine
from spark.core import Node, Tree
from spark.engines.base import SamplingParams

PROMPT, TURNS, SAMPLED, BRANCH_TURNS, BRANCH_OBSERVATION, BLOCK = 64, 8, 16, 2, 48, 16
# trunk: one prefix, all leaves part at its end; paced: forks spread over the episode.
# shape, prefix or length in tokens, leaves of a tree, trees at once
SHAPES = [
    ("trunk", 512, 4, 1),
    ("trunk", 512, 4, 16),
    ("trunk", 512, 32, 8),
    ("trunk", 2048, 8, 8),
    ("trunk", 8192, 4, 4),
    ("trunk", 8192, 16, 2),
    ("paced", 1024, 8, 8),
]
TOGETHER = 2
"""Trees at once from which on branches are decoded together and the target holds."""
ALLOWED = "unique tokens + a block per leaf"
NAIVE_LIMIT = 500_000
"""Most tokens the naive way may have to compute for it to be timed at all."""


def run(quick: bool = False) -> list[Case]:
    """Return a row each for time, peak KV and the tokens of every kind, for each shape."""
    shapes = [("trunk", 512, 4, 2), ("paced", 256, 8, 2)] if quick else SHAPES
    return [case for shape in shapes for case in regenerate(*shape, rounds=1 if quick else 3)]


def regenerate(
    shape: str,
    prefix: int,
    leaves: int,
    trees: int,
    rounds: int,
    model: PreTrainedModel | None = None,
    exact: bool = True,
) -> list[Case]:
    """Time the ways on `trees` trees at once and count what each computed.

    exact: every way must draw the recorded tokens; else the decisions that differ are counted.
    """
    make = trunk if shape == "trunk" else paced
    forest = [make(prefix, leaves, seed) for seed in range(trees)]
    model = model or random_model("1M", torch.float32)
    ways = {"forks": forks, "chains": chains}
    if trees * naive_tokens(forest[0]) <= NAIVE_LIMIT:
        ways["naive"] = naive
    # more than unshared leaves need, so that no way ever waits for blocks
    blocks = trees * leaves * (path_tokens(forest[0], forest[0].leaves()[0]) // BLOCK + 16)
    engine = LocalEngine(model, num_blocks=blocks, block_size=BLOCK)

    def again(name: str) -> Way:
        way, before = Way(engine), engine.stats()
        asyncio.run(way.run(ways[name], forest))
        way.counts = {key: value - before[key] for key, value in engine.stats().items()}
        return way

    done = {name: again(name) for name in ways}
    mine = done["forks"].said
    differ = {
        name: sum(way.said[seed] != mine[seed] for seed in mine) for name, way in done.items()
    }
    for name, way in done.items():
        assert way.said.keys() == mine.keys(), f"{name}: other decisions than the recorded ones"
        assert not (exact and differ[name]), f"{name}: other tokens than the recorded ones"
    times = interleave({name: partial(again, name) for name in ways}, rounds=rounds, warmup=0)
    case: dict[str, object] = {"shape": shape, "prefix": prefix, "leaves": leaves, "trees": trees}
    if not exact:
        case["differ"] = f"{max(differ.values())} of {len(mine)}"
    return cases(case, forest, done, times)


@dataclass
class Way:
    """One regeneration: the engine, and what was seen on the way."""

    engine: LocalEngine
    peak: int = 0
    """Most KV blocks in use."""
    said: dict[int, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    """Seed of a node -> the decisions that were sampled for it."""
    counts: dict[str, int] = field(default_factory=dict)

    async def run(self, way: Regenerate, forest: list[Tree]) -> None:
        """Regenerate all trees at once."""
        await asyncio.gather(*(way(self, tree) for tree in forest))

    async def sample(self, seq: int, tree: Tree, index: int) -> list[int]:
        """Sample the decision of node `index` again."""
        seed = 1000 * tree.seed + index
        out = await self.engine.sample(seq, SamplingParams(max_tokens=SAMPLED, seed=seed))
        self.said[seed].add(tuple(out.tokens))
        self.peak = max(self.peak, self.engine.stats()["blocks_in_use"])
        return out.tokens

    async def play(self, seq: int, tree: Tree, index: int) -> None:
        """Sample node `index` again and append its observation."""
        await self.sample(seq, tree, index)
        await self.engine.extend(seq, tree.nodes[index].tokens)
        self.peak = max(self.peak, self.engine.stats()["blocks_in_use"])


Regenerate = Callable[[Way, Tree], Awaitable[None]]


async def forks(way: Way, tree: Tree) -> None:
    """Compute every node once."""
    children = tree.children()

    async def grow(seq: int, index: int) -> None:
        if index:
            await way.play(seq, tree, index)
        branches = children[index]
        seqs = [seq]
        if len(branches) > 1:
            seqs += await way.engine.fork(seq, len(branches) - 1)
        if branches:
            await asyncio.gather(*map(grow, seqs, branches))
        else:
            await way.engine.release(seq)

    await grow(await way.engine.open(tree.nodes[0].tokens), 0)


async def chains(way: Way, tree: Tree) -> None:
    """Compute every leaf's path by itself, after a prompt that is computed once."""
    prompt = await way.engine.open(tree.nodes[0].tokens)
    leaves = tree.leaves()

    async def chain(seq: int, leaf: int) -> None:
        for index in tree.path(leaf)[1:]:
            await way.play(seq, tree, index)
        await way.engine.release(seq)

    await asyncio.gather(*map(chain, await way.engine.fork(prompt, len(leaves)), leaves))
    await way.engine.release(prompt)


async def naive(way: Way, tree: Tree) -> None:
    """Compute every leaf's path by itself, and every turn's conversation again."""

    async def chain(leaf: int) -> None:
        said = list(tree.nodes[0].tokens)
        for index in tree.path(leaf)[1:]:
            seq = await way.engine.open(said)
            said += await way.sample(seq, tree, index)
            said += tree.nodes[index].tokens
            await way.engine.release(seq)

    await asyncio.gather(*map(chain, tree.leaves()))


def trunk(prefix: int, leaves: int, seed: int) -> Tree:
    """Return a tree whose leaves share `prefix` tokens in 8 turns and then take 2 of their own."""
    tree = Tree(task="trunk", seed=seed, nodes=[Node(parent=None, tokens=given(PROMPT, seed))])
    for _ in range(TURNS):
        tip = grown(tree, len(tree.nodes) - 1, prefix // TURNS)
    for _ in range(leaves):
        index = tip
        for _ in range(BRANCH_TURNS):
            index = grown(tree, index, SAMPLED + BRANCH_OBSERVATION)
    return tree


def paced(length: int, leaves: int, seed: int) -> Tree:
    """Return a tree of leaves of `length` tokens: half are roots, half fork off, spread evenly."""
    tree = Tree(task="paced", seed=seed, nodes=[Node(parent=None, tokens=given(PROMPT, seed))])
    tips = [0] * (leaves // 2)
    for turn in range(TURNS):
        # a root's twin leaves it after this turn
        twins = [
            tips[i] for i in range(leaves // 2) if (i + 1) * TURNS // (leaves // 2 + 1) == turn
        ]
        tips = [grown(tree, tip, length // TURNS) for tip in tips + twins]
    return tree


def grown(tree: Tree, parent: int, tokens: int) -> int:
    """Add a turn of `tokens` tokens after `parent` and return its index."""
    tree.nodes.append(Node(parent=parent, tokens=given(tokens - SAMPLED, len(tree.nodes))))
    return len(tree.nodes) - 1


def given(count: int, seed: int) -> list[int]:
    """Return tokens that nobody sampled."""
    return random.Random(seed).choices(range(VOCAB), k=count)


def path_tokens(tree: Tree, leaf: int) -> int:
    """Return the tokens from the start to the end of `leaf`."""
    path = tree.path(leaf)
    return sum(len(tree.nodes[index].tokens) for index in path) + SAMPLED * (len(path) - 1)


def naive_tokens(tree: Tree) -> int:
    """Return how many tokens the naive way computes."""
    return sum(path_tokens(tree, index) for leaf in tree.leaves() for index in tree.path(leaf))


def cases(
    case: dict[str, object], forest: list[Tree], done: dict[str, Way], times: dict[str, Timing]
) -> list[Case]:
    """Turn times and counts into rows; the bound is what chains compute over what is unique."""
    tree, trees = forest[0], len(forest)
    leaves = tree.leaves()
    unique = PROMPT + sum(len(node.tokens) + SAMPLED for node in tree.nodes[1:])
    alone = PROMPT + sum(path_tokens(tree, leaf) - PROMPT for leaf in leaves)
    case = case | {"bound": round(alone / unique, 2)}
    mine, others = times.pop("forks"), times
    floor = times["chains"].median * unique / alone
    time = Case(
        op="regenerate",
        case=case,
        metric="time",
        unit="ms",
        ours=mine.scaled(1e3),
        baselines={name: other.scaled(1e3) for name, other in others.items()},
        ratio={name: other.median / mine.median for name, other in others.items()},
        floor=floor * 1e3,
        fraction_of_floor=floor / mine.median,
        target={"floor": 0.85} if trees >= TOGETHER else None,
        met=floor / mine.median >= 0.85 if trees >= TOGETHER else None,
    )
    used = {name: way.peak for name, way in done.items()}
    used[ALLOWED] = round(trees * (unique / BLOCK + len(leaves)))
    blocks = count(case, "peak KV", "blocks", used)
    blocks.target, blocks.met = {ALLOWED: 0.95}, blocks.ratio[ALLOWED] >= 0.95
    tokens = [
        count(case, name, "tokens", {key: way.counts[name] for key, way in done.items()})
        for name in ("generated", "prefilled", "reused", "recomputed")
    ]
    return [time, blocks, *tokens]


def count(case: dict[str, object], metric: str, unit: str, values: dict[str, int]) -> Case:
    """Return a row of counts; they have no spread."""
    rows = {name: Timing(value, value, value, 1) for name, value in values.items()}
    mine = rows.pop("forks")
    ratio = {name: row.median / mine.median for name, row in rows.items() if mine.median}
    return Case(
        op=metric, case=case, metric=metric, unit=unit, ours=mine, baselines=rows, ratio=ratio
    )
