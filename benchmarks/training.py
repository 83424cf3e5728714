"""One optimiser step on the same trees: whole trees packed, one row per leaf, the prompt shared.

packed: every node is forwarded once and trained once with the merged credit of its leaves.
leaves: every leaf by itself, what is shared forwarded and trained again for each; nothing padded.
prompt: the prompt is forwarded once and what follows it once per leaf (PrefixGrouper's sharing).
All take the same step: their gradients are compared before anything is timed. The bound is what
leaves forward over what is unique. Packing counts as part of the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from benchmarks.engine import random_model
from benchmarks.harness import Case, Timing, interleave
from benchmarks.recorded import Forest, packed, per_leaf, per_prompt, recorded
from spark.core import Tree
from spark.recipes.config import LoraConfig
from spark.recipes.policy import with_lora
from spark.train.attention import hidden_keys, use_tree_attention
from spark.train.pack import Row, pack
from spark.train.policy import token_loss
from spark.train.trainer import base_model

# turns that all leaves share, turns of a leaf's own, leaves of a tree: the bound, about
SHAPES = {1.5: (4, 3, 3), 2: (8, 4, 4), 4: (16, 2, 6), 8: (24, 1, 12)}
WHOLE = 1 << 20


@dataclass(kw_only=True, frozen=True)
class Setting:
    """What one step is taken with."""

    sharing: float
    size: str = "1M"
    dtype: str = "float32"
    lora: int = 0
    row_tokens: int = WHOLE
    trees: int = 1


SETTINGS = [
    *(Setting(sharing=sharing) for sharing in SHAPES),
    Setting(sharing=1.5, size="27M"),
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
    forest = [recorded(*SHAPES[setting.sharing], seed) for seed in range(setting.trees)]
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
    rows = rows_of(ways["packed"], setting)
    steps["masks"] = lambda: [masks(row) for row in rows]
    times = interleave(steps, rounds=rounds, warmup=1)
    return cases(setting, forest, times, tokens, memory)


def rows_of(way: Forest, setting: Setting) -> list[Row]:
    """Pack a way's trees."""
    return pack([tree for tree, _ in way], [terms for _, terms in way], setting.row_tokens)


def masks(row: Row) -> None:
    """Make what the layers of one forward pass share: who sees whom on the longest path."""
    hidden_keys(int(row.positions.max()) + 1, None, row.tokens.device)


def forwarded(way: Forest, setting: Setting) -> int:
    """Return how many tokens a way forwards."""
    return sum(len(row.tokens) for row in rows_of(way, setting))


def prepared(setting: Setting) -> Any:
    """Return the network of a setting, ready for packed rows."""
    model = random_model(setting.size, torch.float32)
    use_tree_attention(model)
    return with_lora(model, LoraConfig(rank=setting.lora), seed=0) if setting.lora else model


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def backward(model: nn.Module, way: Forest, setting: Setting) -> None:
    """Pack, forward, and accumulate the gradients of the policy objective at ratio 1."""
    rows = rows_of(way, setting)
    total = sum(float(row.weight.sum()) for row in rows)
    network: PreTrainedModel = base_model(model)
    for row in rows:
        forward(network, row, total, setting).backward()


def forward(network: PreTrainedModel, row: Row, total: float, setting: Setting) -> torch.Tensor:
    """Return a row's share of the loss."""

    def share(logprob: torch.Tensor, entropy: torch.Tensor, part: slice) -> torch.Tensor:
        own = row.part(part)
        return -(own.weight * own.advantage * logprob[own.term_target]).sum() / total

    with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bfloat16"):
        return token_loss(network, row, share).loss


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

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            graph = forward(base_model(model), row, 1.0, setting)
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
    case: dict[str, Any] = {"model": setting.size, "dtype": setting.dtype, "trees": setting.trees}
    case |= {"lora": setting.lora} if setting.lora else {}
    case |= {"row": setting.row_tokens} if setting.row_tokens != WHOLE else {}
    case |= {"unique": unique, "bound": round(tokens["leaves"] / unique, 2)}
    mine, packing, hidden = (times.pop(name) for name in ("packed", "packing", "masks"))
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
    parts = [
        share_of_step(case, "packing", packing, mine, None),
        share_of_step(case, "masks", hidden, mine, 1.0),
    ]
    kept = counted(case, "kept for backward", "MB", {n: size / 1e6 for n, size in memory.items()})
    forward = counted(case, "forwarded", "tokens", {**tokens, "unique": unique})
    return [time, *parts, kept, forward]


def share_of_step(
    case: dict[str, Any], name: str, part: Timing, whole: Timing, target: float | None
) -> Case:
    """Return what a part of the step costs beside one hundredth of it."""
    ratio = {"1% of the step": 0.01 * whole.median / part.median}
    return Case(
        op=f"train_{name}",
        case=case,
        metric=name,
        unit="ms",
        ours=part.scaled(1e3),
        ratio=ratio,
        target={"1% of the step": target} if target else None,
        met=ratio["1% of the step"] >= target if target else None,
    )


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
