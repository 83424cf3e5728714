"""Does branching pay? Every arm from the same start, over seeds, at equal tokens or equal time.

    python -m benchmarks.study --name alfworld --arms spark chain --seeds 5

An arm is a method, with settings of its own where wanted: `spark_paced+roots=2`, `chain+lr=1e-4`.
Interrupt it and start it again: finished runs are kept, unfinished ones are resumed. Results go to
benchmarks/results/study/NAME.json; `python -m benchmarks.study_report` writes docs/study.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.statistics import pass_at_k
from spark.recipes import METHODS, RECIPES
from spark.recipes.config import ModelConfig, Recipe
from spark.rollout.store import load_trees

RUNS = results.ROOT / "runs" / "study"
RESULTS = results.RESULTS / "study"
# the policy each environment starts from is part of its recipe
ENVIRONMENTS = {"alfworld": "first_light", "alfworld_smoke": "first_light_smoke"}
ARMS = [name for name in METHODS if name != "explorer"]
SAMPLES, PASS_GAMES = 8, 50


@dataclass(kw_only=True, frozen=True)
class Run:
    """One arm, one seed, one stop rule."""

    env: str
    arm: str
    seed: int
    stop: str
    budget: float
    """Generated tokens or seconds of rollout and training."""
    every: int = 0
    """Steps between two points of the learning curve."""

    @property
    def folder(self) -> Path:
        return RUNS / "_".join(map(str, (self.env, self.stop, self.arm, self.seed)))

    def recipe(self) -> Recipe:
        """Return the recipe; its single arm is what the recipe itself says."""
        recipe = configured(RECIPES[ENVIRONMENTS[self.env]](), self.arm)
        tokens = self.stop == "tokens"
        return replace(
            recipe,
            seed=self.seed,
            arms=("spark",),
            budget_tokens=int(self.budget) if tokens else None,
            budget_seconds=None if tokens else self.budget,
            eval=replace(recipe.eval, every=self.every),
        )


def configured(base: Recipe, arm: str) -> Recipe:
    """Return `base` under an arm like "spark_paced+roots=2". Raises ValueError for an odd one."""
    name, *settings = arm.split("+")
    recipe: Recipe = METHODS[name](base)
    for setting in settings:
        field, _, text = setting.partition("=")
        try:
            value: Any = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if hasattr(recipe.rollout, field):
            recipe = replace(recipe, rollout=replace(recipe.rollout, **{field: value}))
        elif hasattr(recipe.train, field):
            recipe = replace(recipe, train=replace(recipe.train, **{field: value}))
        else:
            raise ValueError(f"arm {arm!r}: {field!r} is no setting of rollout or train")
    return recipe


def play(run: Run) -> None:
    """Train and evaluate one run in this process, or take it up where it was left."""
    from spark.recipes.run import train

    train(run.recipe(), run.folder, resume=(run.folder / "state.json").exists())
    record = run.folder / "record.json"
    record.write_text(json.dumps(described(run), indent=1) + "\n")


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
        "start": summary["success_before"],
        "success": summary["success_after"],
        "episodes": summary["leaves"],
        "tokens": {name: summary[f"{name}_tokens"] for name in names},
        "seconds": {name: summary[f"{name}_wall_s"] for name in ("rollout", "train", "env")},
        **{name: summary[name] for name in counts},
        "curve": curve(summary, lines, run.recipe().eval.curve),
        "triggers": triggers(run),
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


def sampled_success(run: Run) -> dict[int, float]:
    """Return pass@k of the final policy on the first games of the curve's split."""
    from spark.recipes.policy import load_policy
    from spark.recipes.session import Session

    recipe = METHODS["chain"](run.recipe())
    recipe = replace(recipe, rollout=replace(recipe.rollout, leaves=SAMPLES, roots=SAMPLES))
    model = load_policy(ModelConfig(path=str(run.folder / "checkpoints/spark/final")))
    with Session(recipe, *model) as session:
        games = session.eval_games(recipe.eval.curve)[:PASS_GAMES]
        trees = session.rollout(games, recipe.rollout, recipe.eval.seed)
    wins = [sum(leaf["won"] for leaf in tree.info["leaves"]) for tree in trees]
    ks = [2**i for i in range(SAMPLES.bit_length())]
    return {k: sum(pass_at_k(won, SAMPLES, k) for won in wins) / len(wins) for k in ks}


def finished(run: Run) -> dict[str, Any]:
    """Return the record of a run, which is started or resumed where needed."""
    record = run.folder / "record.json"
    if not record.exists():
        start(run)
    loaded: dict[str, Any] = json.loads(record.read_text())
    return loaded


def start(run: Run) -> None:
    """Play `run` in a process with one thread."""
    run.folder.mkdir(parents=True, exist_ok=True)
    code = f"from benchmarks.study import Run, play; play({run!r})"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (run.folder / "log.txt").open("a") as log:
        subprocess.run(
            command, cwd=results.ROOT, env=environment, stdout=log, stderr=log, check=True
        )


def study(runs: list[Run], name: str, command: str, jobs: int, folder: Path = RESULTS) -> Path:
    """Finish all runs, `jobs` at a time, and write the results file."""
    for run in runs:
        run.recipe()
    with ThreadPoolExecutor(jobs) as pool:
        records = list(pool.map(finished, runs))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    data = {
        "schema": 1,
        "git": results.git(),
        "machine": results.machine(),
        "versions": results.versions(),
        "command": command,
        "runs": records,
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def main() -> None:
    """Run the study that the flags describe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--name", required=True, help="of the results file")
    parser.add_argument("--env", choices=ENVIRONMENTS, default="alfworld")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stop", choices=("tokens", "seconds"), default="tokens")
    parser.add_argument("--budget", type=float, default=120_000, help="tokens or seconds of an arm")
    parser.add_argument("--every", type=int, default=4, help="steps between points of the curve")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    shared = {"env": args.env, "stop": args.stop, "budget": args.budget, "every": args.every}
    runs = [Run(arm=arm, seed=seed, **shared) for seed in range(args.seeds) for arm in args.arms]
    command = " ".join(["python -m benchmarks.study", *sys.argv[1:]])
    print(study(runs, args.name, command, args.jobs))


if __name__ == "__main__":
    main()
