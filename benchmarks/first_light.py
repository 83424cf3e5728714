"""What the main job learns: success on the fixed evaluation set, over seeds, both arms.

Two runs at a time with one thread each. Interrupt it and start it again: finished runs are kept
and unfinished ones are resumed (`runs/benchmark/`; remove it to measure anew).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import Case, Timing
from spark.recipes import RECIPES

RUNS = Path(__file__).parents[1] / "runs" / "benchmark"
SEEDS = range(5)
GAIN, NEEDED = 0.10, 4
SPLIT = "L0"


def run(*, quick: bool) -> list[Case]:
    """Return a case for every seed, arm and split, and one for the target."""
    recipe = "first_light_smoke" if quick else "first_light"
    seeds = SEEDS[:2] if quick else SEEDS
    with ThreadPoolExecutor(2) as pool:
        summaries = list(pool.map(lambda seed: finished(recipe, seed), seeds))
    games = RECIPES[recipe]().eval.games
    cases = [case for summary in summaries for case in seed_cases(summary, games)]
    return [*cases, target(summaries)]


def finished(recipe: str, seed: int) -> dict[str, Any]:
    """Return the summary of one seed's run, which is started or resumed where needed."""
    folder = RUNS / f"{recipe}_{seed}"
    summary = folder / "summary.json"
    if not summary.exists():
        spark = str(Path(sys.executable).with_name("spark"))
        command = [spark, "train", recipe, "--seed", str(seed), "--run_dir", str(folder)]
        resume = ["--resume"] if (folder / "state.json").exists() else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            subprocess.run([*command, *resume], env=environment, stdout=log, stderr=log, check=True)
    loaded: dict[str, Any] = json.loads(summary.read_text())
    return loaded


def seed_cases(summary: dict[str, Any], games: dict[str, int]) -> Iterable[Case]:
    """Yield the success of each arm of one run on each split."""
    for name, arm in summary["arms"].items():
        for split, after in arm["success_after"].items():
            before = arm["success_before"][split]
            error = math.sqrt(after * (1 - after) / games[split])
            shared = arm["reused_tokens"] / (arm["reused_tokens"] + arm["generated_tokens"])
            yield Case(
                op="first_light",
                case={
                    "seed": summary["seed"],
                    "arm": name,
                    "split": split,
                    "games": games[split],
                    "standard_error": round(error, 4),
                    "gain": round(after - before, 4),
                    "generated_tokens": arm["generated_tokens"],
                    "reused_share": round(shared, 4),
                    "wall_s": round(summary["wall_s"], 1),
                },
                metric="success",
                unit="share",
                ours=single(after),
                baselines={"start": single(before)},
                ratio={"start": after / before} if before else {},
            )


def target(summaries: list[dict[str, Any]]) -> Case:
    """Return in how many seeds the better arm gained enough on L0."""
    gains = [
        max(a["success_after"][SPLIT] - a["success_before"][SPLIT] for a in s["arms"].values())
        for s in summaries
    ]
    enough = float(sum(gain >= GAIN - 1e-9 for gain in gains))
    return Case(
        op="first_light",
        case={"target": f"better arm gains >= {GAIN:.0%} on {SPLIT}", "seeds": len(summaries)},
        metric="seeds",
        unit="seeds",
        ours=single(enough),
        baselines={},
        ratio={"seeds": enough},
        target={"seeds": float(NEEDED)},
        met=enough >= NEEDED,
    )


def single(value: float) -> Timing:
    """Return one measurement."""
    return Timing(value, value, value, 1)
