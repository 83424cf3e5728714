"""What the results file says of a finished run of the study."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from benchmarks.statistics import pass_at_k
from spark.recipes import METHODS
from spark.recipes.config import ModelConfig
from spark.rollout.store import load_trees

if TYPE_CHECKING:
    from benchmarks.study import Run

SAMPLES, PASS_GAMES = 8, 32


def described(run: Run) -> dict[str, Any]:
    """Return what the results file says of a finished run."""
    summary = json.loads((run.folder / "summary.json").read_text())["arms"]["spark"]
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    names = ("generated", "prefilled", "reused", "trained")
    counts = ("forks", "env_steps", "env_steps_replayed")
    return {
        "env": run.env,
        "arm": run.arm,
        "seed": run.seed,
        "stop": run.stop,
        "budget": run.budget,
        "horizon": run.recipe().rollout.horizon,
        "start": summary["success_before"],
        "success": summary["success_after"],
        "episodes": summary["leaves"],
        "tokens": {name: summary[f"{name}_tokens"] for name in names},
        "seconds": {name: summary[f"{name}_wall_s"] for name in ("rollout", "train", "env")},
        **{name: summary[name] for name in counts},
        "curve": curve(summary, lines, run.recipe().eval.curve),
        "triggers": triggers(run),
        "trees": outcomes(run),
        "pairs": pairs(run),
        "pass_at_k": sampled_success(run),
    }


def curve(summary: dict[str, Any], lines: list[Any], split: str) -> list[dict[str, Any]]:
    """Return success against what it cost, from the start to the end."""
    names = {"trained_on_tokens": "tokens", "trained_on_seconds": "seconds", "step": "step"}
    names[f"curve_{split}"] = "success"
    way = [
        {short: line[name] for name, short in names.items()}
        for line in lines
        if line["phase"] == "curve"
    ]
    start = {"tokens": 0, "seconds": 0.0, "step": 0, "success": summary["success_before"][split]}
    end = {
        "tokens": summary["generated_tokens"],
        "seconds": summary["rollout_wall_s"] + summary["train_wall_s"],
        "step": sum(line["phase"] == "train" for line in lines),
        "success": summary["success_after"][split],
    }
    return [start, *way, end]


def triggers(run: Run) -> dict[str, dict[int, int]]:
    """Return where trees branched: forks by turn, and by step of training."""
    turns: Counter[int] = Counter()
    steps: Counter[int] = Counter()
    for tree in load_trees(run.folder / "trees.jsonl"):
        found = [node.turn for node in tree.nodes if node.trigger]
        turns.update(found)
        steps[tree.info["step"]] += len(found)
    return {"by_turn": dict(sorted(turns.items())), "by_step": dict(sorted(steps.items()))}


def outcomes(run: Run) -> dict[str, int]:
    """Return how many trees and leaves there were, won leaves, and trees of both outcomes."""
    found = Counter(trees=0, mixed=0, leaves=0, won=0)
    for tree in load_trees(run.folder / "trees.jsonl"):
        won = [leaf["won"] for leaf in tree.info["leaves"]]
        mixed = any(won) and not all(won)
        found.update(trees=1, mixed=int(mixed), leaves=len(won), won=sum(won))
    return dict(found)


def pairs(run: Run) -> dict[int, list[int]]:
    """Return [pairs of leaves of one tree, those of them where one won and one lost].

    By the decisions that the two share, 0 where they part at the prompt.
    """
    found: dict[int, list[int]] = {}
    for tree in load_trees(run.folder / "trees.jsonl"):
        ends = [(set(tree.path(leaf["node"])), leaf["won"]) for leaf in tree.info["leaves"]]
        for (path, won), (other, also_won) in combinations(ends, 2):
            shared = 1 + max(tree.nodes[index].turn for index in path & other)
            count = found.setdefault(shared, [0, 0])
            count[0] += 1
            count[1] += won != also_won
    return dict(sorted(found.items()))


def sampled_success(run: Run) -> dict[int, float]:
    """Return pass@k of the final policy on the first games of the curve's split."""
    from spark.recipes.policy import load_policy
    from spark.recipes.session import Session

    recipe = METHODS["chain"](run.recipe())
    acting = {"leaves": SAMPLES, "roots": SAMPLES, "temperature": recipe.eval.temperature}
    recipe = replace(recipe, rollout=replace(recipe.rollout, **acting))
    model = load_policy(ModelConfig(path=str(run.folder / "checkpoints/spark/final")))
    with Session(recipe, *model) as session:
        games = session.eval_games(recipe.eval.curve)[:PASS_GAMES]
        trees = session.rollout(games, recipe.rollout, recipe.eval.seed)
    wins = [sum(leaf["won"] for leaf in tree.info["leaves"]) for tree in trees]
    ks = [2**i for i in range(SAMPLES.bit_length())]
    return {k: sum(pass_at_k(won, SAMPLES, k) for won in wins) / len(wins) for k in ks}
