"""What a generated token teaches: gradients of single trees at the start, method by method.

    python -m benchmarks.study_signal --games 96

Nothing is trained: each arm plays the same games with the policy that all arms start from. A tree's
gradient g, divided by its leaves, is held against the direction m of the policy gradient, which
independent chains on other games give: its signal is g.m / |m|, its noise |g|. As long as steps are
small, progress per token goes with (mean signal)^2 / (mean |g|^2 * tokens of a tree), however the
gradient is scaled. It is reported relative to chains, with intervals that resample games.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.study import ENVIRONMENTS, RESULTS, configured
from spark.core import Tree
from spark.recipes import RECIPES
from spark.recipes.config import Recipe
from spark.recipes.policy import load_policy
from spark.recipes.session import Session
from spark.train.attention import use_tree_attention
from spark.train.credit import CreditConfig, credit, teaches
from spark.train.pack import pack
from spark.train.policy import token_loss

BASELINE = "chain"
REFERENCE = "chain+compare=mean+normalise=token"
"""Its expectation is the gradient of the success, game by game: no token weighs less because its
episode is long, as it does under the arms' own normalisation."""
ARMS = [
    BASELINE,
    "spark",
    *(f"spark_paced+scheme={scheme}" for scheme in ("leaf", "node", "nested", "tree")),
    "spark_here+scheme=leaf",
    "spark_here+scheme=nested",
    "entropy_exact+entropy_threshold=0.2",
    "random",
    "fixed",
    "at2po",
    "return_to_success",
]
SEED = 77
DRAWS = 2000


@dataclass(kw_only=True, frozen=True)
class Measure:
    """What one tree says under one arm."""

    signal: float
    square: float
    tokens: int
    """Generated for it."""


class Gradients:
    """Rolls out trees at the start and differentiates them; trees of one rollout are kept."""

    def __init__(self, env: str) -> None:
        self.base: Recipe = RECIPES[ENVIRONMENTS[env]]()
        self.model, tokenizer = load_policy(self.base.model)
        self.session = Session(self.base, self.model, tokenizer)
        use_tree_attention(self.model)
        self._trees: dict[str, list[Tree]] = {}

    def trees(self, recipe: Recipe, tasks: Sequence[str]) -> list[Tree]:
        """Return one tree per task."""
        key = repr((recipe.rollout, tasks))
        if key not in self._trees:
            self._trees[key] = self.session.rollout(tasks, recipe.rollout, SEED)
        return self._trees[key]

    def gradient(self, tree: Tree, config: CreditConfig) -> Tensor | None:
        """Return the ascent direction of `tree` per leaf, None where its leaves are all alike."""
        terms = credit(tree, config)
        if not teaches(terms):
            return None
        self.model.zero_grad()
        for row in pack([tree], [terms], self.base.train.row_tokens):

            def share(logprob: Tensor, entropy: Tensor, part: slice, row: Any = row) -> Tensor:
                own = row.part(part)
                return (own.weight * own.advantage * logprob[own.term_target]).sum()

            token_loss(self.model, row, share, self.base.rollout.temperature).loss.backward()
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(grads) / len(tree.leaves())

    def direction(self, tasks: Sequence[str]) -> Tensor:
        """Return the unit vector along the policy gradient that chains on `tasks` give."""
        recipe = configured(self.base, REFERENCE)
        trees = self.trees(recipe, tasks)
        found = [self.gradient(tree, recipe.train.credit) for tree in trees]
        total = torch.stack([each for each in found if each is not None]).sum(0)
        return total / total.norm()

    def measures(self, arm: str, tasks: Sequence[str], direction: Tensor) -> list[Measure]:
        """Return what each game's tree says under `arm`."""
        recipe = configured(self.base, arm)
        found = []
        for tree in self.trees(recipe, tasks):
            gradient = self.gradient(tree, recipe.train.credit)
            signal = 0.0 if gradient is None else float(gradient @ direction)
            square = 0.0 if gradient is None else float(gradient @ gradient)
            found.append(Measure(signal=signal, square=square, tokens=tree.info["generated"]))
        return found


def progress(measures: Sequence[Measure]) -> float:
    """Return (mean signal)^2 / (mean |g|^2 * mean tokens); 0 where the signal points backwards."""
    signal = max(0.0, fmean(m.signal for m in measures))
    spent = fmean(m.square for m in measures) * fmean(m.tokens for m in measures)
    return signal**2 / spent if spent else 0.0


def compared(ours: Sequence[Measure], theirs: Sequence[Measure]) -> dict[str, float]:
    """Return the ratio of the progress of `ours` to that of `theirs`, with its 90 % interval."""
    rng = random.Random(0)
    ratios = []
    for _ in range(DRAWS):
        games = rng.choices(range(len(ours)), k=len(ours))
        below = progress([theirs[game] for game in games])
        ratios.append(progress([ours[game] for game in games]) / below if below else float("inf"))
    ratios.sort()
    ratio = progress(ours) / progress(theirs)
    return {"ratio": ratio, "low": ratios[DRAWS // 20], "high": ratios[-DRAWS // 20]}


def main() -> None:
    """Measure all arms and write benchmarks/results/study/NAME.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_signal", description=__doc__)
    parser.add_argument("--name", default="signal", help="of the results file")
    parser.add_argument("--env", choices=ENVIRONMENTS, default="alfworld")
    parser.add_argument("--games", type=int, default=96, help="for the arms, and as many for m")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    args = parser.parse_args()
    gradients = Gradients(args.env)
    tasks = gradients.session.source.tasks("train", 2 * args.games, SEED)
    with gradients.session:
        direction = gradients.direction(tasks[args.games :])
        found = {arm: gradients.measures(arm, tasks[: args.games], direction) for arm in args.arms}
    rows = [
        {
            "arm": arm,
            "trees": len(measures),
            "tokens": fmean(m.tokens for m in measures),
            "signal": fmean(m.signal for m in measures),
            "noise": fmean(m.square for m in measures) ** 0.5,
            **compared(measures, found[BASELINE]),
        }
        for arm, measures in found.items()
    ]
    data = {
        "schema": 1,
        "git": results.git(),
        "machine": results.machine(),
        "versions": results.versions(),
        "command": " ".join(["python -m benchmarks.study_signal", *sys.argv[1:]]),
        "signal": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
