"""One optimiser step on the same trees: whole trees packed, one row per leaf, the prompt shared.

packed: every node is forwarded once and trained once with the merged credit of its leaves.
leaves: a row per leaf, what is shared forwarded and trained again for each; nothing is padded.
prompt: the prompt is forwarded once and what follows it once per leaf (PrefixGrouper's sharing).
All take the same step: their gradients are compared before anything is timed. The bound is what
leaves forward over what is unique. Packing counts as part of the step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from benchmarks.engine import VOCAB, random_model
from benchmarks.harness import Case, Timing, interleave
from spark.core import Node, Tree
from spark.recipes.config import LoraConfig
from spark.recipes.policy import with_lora
from spark.train.attention import use_tree_attention
from spark.train.credit import CreditConfig, Term, credit
from spark.train.pack import Row, pack
from spark.train.policy import token_logprobs
from spark.train.replay import chain_of
from spark.train.trainer import base_model

Forest = list[tuple[Tree, list[list[Term]]]]
PROMPT, TURN, SAID = 64, 48, 16
"""Tokens of the prompt, of a turn, and of the decision in it."""
# turns that all leaves share, turns of a leaf's own, leaves of a tree: the bound, about
SHAPES = {1.5: (4, 3, 3), 2: (8, 4, 4), 4: (16, 2, 6), 8: (24, 1, 12)}
TREES = 2
WHOLE = 1 << 20


@dataclass(kw_only=True, frozen=True)
class Setting:
    """What one step is taken with."""

    sharing: float
    size: str = "1M"
    dtype: str = "float32"
    lora: int = 0
    row_tokens: int = WHOLE


SETTINGS = [
    *(Setting(sharing=sharing) for sharing in SHAPES),
    *(Setting(sharing=sharing, size="27M") for sharing in SHAPES),
    Setting(sharing=4, dtype="bfloat16"),
    Setting(sharing=4, lora=8),
    # gradients accumulated over rows: trees are cut at nodes where they do not fit
    Setting(sharing=4, row_tokens=1024),
]


def run(quick: bool = False) -> list[Case]:
    """Return rows for time, memory, tokens and the cost of packing, for each setting."""
    settings = SETTINGS
    if quick:
        rows = Setting(sharing=1.5, row_tokens=512)
        settings = [Setting(sharing=1.5), Setting(sharing=1.5, lora=4, dtype="bfloat16"), rows]
    return [case for each in settings for case in step_cases(each, rounds=1 if quick else 3)]


def step_cases(setting: Setting, rounds: int) -> list[Case]:
    """Compare the three ways in one setting."""
    forest = [recorded(*SHAPES[setting.sharing], seed) for seed in range(TREES)]
    model = prepared(setting)
    ways = {"packed": packed(forest), "leaves": per_leaf(forest), "prompt": per_prompt(forest)}
    tokens = {name: forwarded(way, setting) for name, way in ways.items()}
    check_gradients(model, ways, setting)
    # every way steps a network of its own, so that none inherits what another has cached
    steps: dict[str, Callable[[], object]] = {}
    for name, way in ways.items():
        own = copy.deepcopy(model)
        steps[name] = partial(step, own, AdamW(trained(own), lr=1e-6), way, setting)
    memory = {name: kept_bytes(model, way, setting) for name, way in ways.items()}
    steps["packing"] = lambda: rows_of(ways["packed"], setting)
    times = interleave(steps, rounds=rounds, warmup=1)
    return cases(setting, forest, times, tokens, memory)


def recorded(shared: int, own: int, leaves: int, seed: int) -> Tree:
    """Return a tree of `shared` turns, then `leaves` branches of `own` turns, half of them won."""
    rng = random.Random(seed)

    def given(parent: int | None, count: int, said: int) -> Node:
        tokens = [rng.randrange(VOCAB) for _ in range(count)]
        sampled = [at < said for at in range(count)]
        logprobs = [-1.0 if drawn else 0.0 for drawn in sampled]
        zeros = [0.0] * count
        return Node(
            parent=parent,
            tokens=tokens,
            sampled=sampled,
            logprobs=logprobs,
            log_kept_mass=zeros,
            entropies=zeros,
        )

    tree = Tree(task="recorded", seed=seed, nodes=[given(None, PROMPT, 0)])
    for turn in range(shared):
        tree.nodes.append(given(turn, TURN, SAID))
    for leaf in range(leaves):
        parent = shared
        for _ in range(own):
            tree.nodes.append(given(parent, TURN, SAID))
            parent = len(tree.nodes) - 1
        tree.nodes[-1] = replace(tree.nodes[-1], done=True, reward=float(leaf % 2))
    return tree


def packed(forest: list[Tree]) -> Forest:
    """Return whole trees with merged terms."""
    return [(tree, credit(tree, CreditConfig())) for tree in forest]


def per_leaf(forest: list[Tree]) -> Forest:
    """Return every path as a tree of its own, with the leaf's own terms."""
    paths: Forest = []
    for tree in forest:
        terms = credit(tree, CreditConfig(once_per_leaf=True))
        for place, leaf in enumerate(tree.leaves()):
            own = [terms[index][place if shared else 0] for index, shared in path(tree, leaf)]
            paths.append((chain_of(tree, leaf), [[term] for term in own]))
    return paths


def path(tree: Tree, leaf: int) -> list[tuple[int, bool]]:
    """Return the nodes of a path, and whether all leaves of the tree share each."""
    shared = len(tree.path(leaf)) - own_turns(tree, leaf)
    return [(index, depth < shared) for depth, index in enumerate(tree.path(leaf))]


def own_turns(tree: Tree, leaf: int) -> int:
    """Return how many nodes at the end of a path no other leaf has."""
    fork = max(index for index, kids in enumerate(tree.children()) if len(kids) > 1)
    return len(tree.path(leaf)) - len(tree.path(fork))


def per_prompt(forest: list[Tree]) -> Forest:
    """Return every tree with the prompt shared and the rest of each path by itself."""
    trees: Forest = []
    chains = iter(per_leaf(forest))
    for tree in forest:
        flat = Tree(task=tree.task, seed=tree.seed, nodes=[tree.nodes[0]])
        flat_terms: list[list[Term]] = [[]]
        for _ in tree.leaves():
            chain, terms = next(chains)
            start = len(flat.nodes) - 1
            for index, node in enumerate(chain.nodes[1:], start=1):
                flat.nodes.append(replace(node, parent=start + index - 1 if index > 1 else 0))
                flat_terms.append(terms[index])
        trees.append((flat, flat_terms))
    return trees


def rows_of(way: Forest, setting: Setting) -> list[Row]:
    """Pack a way's trees."""
    return pack([tree for tree, _ in way], [terms for _, terms in way], setting.row_tokens)


def forwarded(way: Forest, setting: Setting) -> int:
    """Return how many tokens a way forwards."""
    return sum(len(row.tokens) for row in rows_of(way, setting))


def prepared(setting: Setting) -> Any:
    """Return the network of a setting, ready for packed rows."""
    model = random_model(setting.size, torch.float32)
    use_tree_attention(model)
    return with_lora(model, LoraConfig(rank=setting.lora)) if setting.lora else model


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def backward(model: nn.Module, way: Forest, setting: Setting) -> None:
    """Pack, forward, and accumulate the gradients of the policy objective at ratio 1."""
    rows = rows_of(way, setting)
    total = sum(float(row.weight.sum()) for row in rows)
    network: PreTrainedModel = base_model(model)
    for row in rows:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            logprobs = token_logprobs(network, row)
        gain = (row.weight * row.advantage * logprobs[row.term_target]).sum()
        (-gain / total).backward()


def step(model: nn.Module, optimizer: AdamW, way: Forest, setting: Setting) -> None:
    """Take one optimiser step."""
    backward(model, way, setting)
    optimizer.step()
    optimizer.zero_grad()


def check_gradients(model: nn.Module, ways: dict[str, Forest], setting: Setting) -> None:
    """Assert that every way has the gradient of the sum over leaves, in float32."""
    exact, found = replace(setting, dtype="float32"), {}
    for name, way in ways.items():
        backward(model, way, exact)
        found[name] = [copy.deepcopy(parameter.grad) for parameter in trained(model)]
        model.zero_grad()
    for name, gradients in found.items():
        for ours, leaves in zip(gradients, found["leaves"], strict=True):
            assert ours is not None and leaves is not None
            difference = float((ours - leaves).abs().max())
            assert difference <= 1e-5, f"{name}: gradients differ by {difference:.1e}"


def kept_bytes(model: nn.Module, way: Forest, setting: Setting) -> int:
    """Return the most bytes that a row keeps for its backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    most = 0
    for row in rows_of(way, setting):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bfloat16"),
        ):
            graph = token_logprobs(base_model(model), row)
        most = max(most, sum(kept.values()))
        del graph
    return most


def cases(
    setting: Setting,
    forest: list[Tree],
    times: dict[str, Timing],
    tokens: dict[str, int],
    memory: dict[str, int],
) -> list[Case]:
    """Turn times and counts into rows."""
    unique = sum(len(node.tokens) for tree in forest for node in tree.nodes)
    case: dict[str, Any] = {"model": setting.size, "dtype": setting.dtype, "trees": TREES}
    case |= {"lora": setting.lora} if setting.lora else {}
    case |= {"row": setting.row_tokens} if setting.row_tokens != WHOLE else {}
    case |= {"unique": unique, "bound": round(tokens["leaves"] / unique, 2)}
    packing, mine = times.pop("packing"), times.pop("packed")
    floor = times["leaves"].median * unique / tokens["leaves"]
    # the targets are for whole trees; cutting them costs what the row of tokens says
    whole = setting.row_tokens == WHOLE
    time = Case(
        op="train_step",
        case=case,
        metric="time",
        unit="ms",
        ours=mine.scaled(1e3),
        baselines={name: other.scaled(1e3) for name, other in times.items()},
        ratio={name: other.median / mine.median for name, other in times.items()},
        floor=floor * 1e3,
        fraction_of_floor=floor / mine.median,
        target={"floor": 0.8} if whole else None,
        met=floor / mine.median >= 0.8 if whole else None,
    )
    share = {"1% of the step": 0.01 * mine.median / packing.median}
    masks = Case(
        op="train_pack",
        case=case,
        metric="packing and masks",
        unit="ms",
        ours=packing.scaled(1e3),
        ratio=share,
        target={"1% of the step": 1.0},
        met=share["1% of the step"] >= 1,
    )
    kept = counted(case, "kept for backward", "MB", {n: size / 1e6 for n, size in memory.items()})
    return [time, masks, kept, counted(case, "forwarded", "tokens", {**tokens, "unique": unique})]


def counted(case: dict[str, Any], metric: str, unit: str, values: dict[str, float]) -> Case:
    """Return a row of counts, which have no spread."""
    found = {name: Timing(value, value, value, 1) for name, value in values.items()}
    mine = found.pop("packed")
    ratio = {name: other.median / mine.median for name, other in found.items()}
    return Case(
        op="train_step",
        case=case,
        metric=metric,
        unit=unit,
        ours=mine,
        baselines=found,
        ratio=ratio,
    )
