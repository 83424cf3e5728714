"""Does branching pay? Every arm from the same start, over seeds, at equal tokens or equal time.

    python -m benchmarks.study --name alfworld --arms spark chain --seeds 5

An arm is a method, with settings of its own where wanted: `spark_paced+roots=2`, `chain+lr=1e-4`.
Interrupt it and start it again: finished runs are kept, unfinished ones are resumed. Several calls
may work on the same study, and `--runs 1` plays one run and leaves the rest to later calls. What is
finished goes to benchmarks/results/study/NAME.json; `python -m benchmarks.study_report` writes
docs/study.md.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from threading import Semaphore
from typing import Any

from benchmarks import results
from benchmarks.study_record import described
from spark.recipes import METHODS, RECIPES
from spark.recipes.config import Recipe

RUNS = results.ROOT / "runs" / "study"
RESULTS = results.RESULTS / "study"
# the policy each environment starts from is part of its recipe
ENVIRONMENTS = {
    "alfworld": "first_light",
    "alfworld_smoke": "first_light_smoke",
    # find-* and lifespan-*
    "scienceworld": "scienceworld",
    "scienceworld_smoke": "scienceworld_smoke",
    # whose outcome is decided last; made by `spark sft examples.levers:levers`
    "levers": "examples.levers:levers",
}
PARTS = ("rollout", "train", "train.credit", "train.loss", "model", "env")
"""Parts of a recipe that an arm's settings may be fields of."""
ACTING = ("horizon", "max_tokens", "top_k", "top_p", "min_p")
ACTING += ("constrain", "exclude_commands", "invalid_limit")
"""Fields of a rollout that say how a policy plays, whatever branches."""
ARMS = [name for name in METHODS if name != "explorer"]


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
    games: int | None = None
    """Evaluation games of every split; None = as many as the recipe says."""

    @property
    def folder(self) -> Path:
        arm = self.arm.replace("/", "-")
        return RUNS / f"{self.env}_{self.budget:.0f}_{self.stop}_{arm}_{self.seed}"

    def recipe(self) -> Recipe:
        """Return the recipe; its single arm is what the recipe itself says."""
        recipe = configured(RECIPES[ENVIRONMENTS[self.env]](), self.arm)
        tokens = self.stop == "tokens"
        games = recipe.eval.games
        if self.games is not None:
            games = dict.fromkeys(games, self.games)
        return replace(
            recipe,
            seed=self.seed,
            arms=("spark",),
            budget_tokens=int(self.budget) if tokens else None,
            budget_seconds=None if tokens else self.budget,
            eval=replace(recipe.eval, every=self.every, games=games),
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
        recipe = replace(recipe, **_changed(recipe, arm, field, value))
    return recipe


def _changed(recipe: Recipe, arm: str, field: str, value: Any) -> dict[str, Any]:
    """Return the part of `recipe` that has `field`, with `value` in it, by the part's name."""
    for path in PARTS:
        part = attrgetter(path)(recipe)
        if hasattr(part, field):
            changed = replace(part, **{field: value})
            outer, _, inner = path.partition(".")
            if inner:
                changed = replace(getattr(recipe, outer), **{inner: changed})
            return {outer: changed}
    raise ValueError(f"arm {arm!r}: {field!r} is no setting of {', '.join(PARTS)}")


def play(run: Run) -> None:
    """Train and evaluate one run in this process, or take it up where it was left."""
    from spark.recipes.run import train

    resume = (run.folder / "state.json").exists()
    train(run.recipe(), run.folder, resume=resume, start=start_of(run))
    record = run.folder / "record.json"
    record.write_text(json.dumps(described(run), indent=1) + "\n")


def start_of(run: Run) -> dict[str, float]:
    """Return the success of the policy that `run` starts from; arms and seeds share it."""
    from spark.recipes.policy import load_policy
    from spark.recipes.session import Session

    recipe = run.recipe()
    acting = [getattr(recipe.rollout, name) for name in ACTING]
    shared = (recipe.env, recipe.model, recipe.eval, acting)
    path = RUNS / f"start_{hashlib.sha256(repr(shared).encode()).hexdigest()[:8]}.json"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            with Session(recipe, *load_policy(recipe.model)) as session:
                found = {split: session.evaluate(split) for split in recipe.eval.games}
            path.write_text(json.dumps(found) + "\n")
    loaded: dict[str, float] = json.loads(path.read_text())
    return loaded


def finished(run: Run) -> dict[str, Any] | None:
    """Return the record of a run, None when it is not finished.

    Raises ValueError where it was evaluated on other games: its folder's name does not say.
    """
    record = run.folder / "record.json"
    if not record.exists():
        return None
    played = json.loads((run.folder / "recipe.json").read_text())["eval"]["games"]
    if played != (asked := run.recipe().eval.games):
        raise ValueError(f"{run.folder} was evaluated on {played}, not {asked}: remove the folder")
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def attempt(run: Run) -> bool:
    """Play `run`, unless it is finished or another call is at it; return whether it was played."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder / "lock", wait=False) as free:
        if not free or finished(run):
            return False
        start(run)
        return True


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path`, which ends with this process; yield False when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def start(run: Run) -> None:
    """Play `run` in a process with one thread."""
    code = f"from benchmarks.study import Run, play; play({run!r})"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (run.folder / "log.txt").open("a") as log:
        subprocess.run(
            command, cwd=results.ROOT, env=environment, stdout=log, stderr=log, check=True
        )


def study(
    runs: list[Run],
    name: str,
    command: str,
    jobs: int,
    folder: Path = RESULTS,
    most: int | None = None,
) -> Path:
    """Finish all runs, or `most` of them, `jobs` at a time, and write what is finished."""
    for run in runs:
        run.recipe()
    left = Semaphore(len(runs) if most is None else most)

    def work(run: Run) -> None:
        if not finished(run) and left.acquire(blocking=False) and not attempt(run):
            left.release()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, runs))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    data = {
        "schema": 1,
        "git": results.git(),
        "machine": results.machine(),
        "versions": results.versions(),
        "command": command,
        "runs": [record for run in runs if (record := finished(run))],
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
    parser.add_argument("--games", type=int, default=200, help="evaluation games of every split")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=int, help="to play in this call at most; none given: all")
    args = parser.parse_args()
    shared = {name: getattr(args, name) for name in ("env", "stop", "budget", "every", "games")}
    runs = [Run(arm=arm, seed=seed, **shared) for seed in range(args.seeds) for arm in args.arms]
    words = sys.argv[1:]
    if "--runs" in words:
        # the whole study is what the file is about
        at = words.index("--runs")
        del words[at : at + 2]
    command = " ".join(["python -m benchmarks.study", *words])
    print(study(runs, args.name, command, args.jobs, most=args.runs))


if __name__ == "__main__":
    main()
