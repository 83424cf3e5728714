"""`spark train RECIPE`: run an experiment with live progress and end with its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from spark.commands.arguments import named_recipe, parse, quiet_libraries
from spark.recipes.config import Recipe


@dataclass(kw_only=True, slots=True)
class TrainOptions:
    """Train every arm of a recipe from the same start, evaluate before and after, report."""

    run_dir: Path
    """Where the run is written."""
    resume: bool = False
    """Go on with the run in `run_dir`; it ends as if it had not been interrupted."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    name, recipe, flags = named_recipe(argv, "spark train")
    default = TrainOptions(run_dir=Path("runs") / recipe.name, recipe=recipe)
    options = parse(TrainOptions, flags, prog=f"spark train {name}", default=default)
    quiet_libraries()
    from spark.recipes.run import train
    from spark.train.team import join
    from spark.view.live import LiveProgress
    from spark.view.report import write_report

    if not join().leads:
        train(options.recipe, options.run_dir, resume=options.resume)
        return
    resume = [flag for flag in flags if flag != "--resume"]
    launcher = "torchrun ... -m spark" if join().sharded else "spark"
    again = f"{launcher} train {shlex.join([name, *resume, '--resume'])}"
    try:
        with LiveProgress(name) as show:
            summary = train(
                options.recipe, options.run_dir, resume=options.resume, on_progress=show
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Go on with: {again}") from None
    print(outcome(summary))
    print(f"report: {write_report(options.run_dir)}")


def outcome(summary: dict[str, Any]) -> str:
    """Return a line per arm: success before and after, and what it cost."""
    lines = []
    for name, arm in summary["arms"].items():
        before, after = arm["success_before"], arm["success_after"]
        splits = [f"{split} {before[split]:.0%} -> {after[split]:.0%}" for split in after]
        shared = arm["reused_tokens"] / max(1, arm["reused_tokens"] + arm["generated_tokens"])
        cost = f"{arm['generated_tokens']:,} tokens sampled, {shared:.0%} of the leaves' reused"
        lines.append(f"{name:<6} {', '.join(splits)}; {cost}")
    return "\n".join(lines)
