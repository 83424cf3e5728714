"""`spark sft RECIPE`: train the recipe's cold start on expert episodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from spark.commands.arguments import named_recipe, parse, quiet_libraries
from spark.recipes.config import Recipe


@dataclass(kw_only=True, slots=True)
class SftOptions:
    """Train a small model from scratch on the environment's expert and save it."""

    output: Path
    """Folder for model and tokenizer."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    name, recipe, flags = named_recipe(argv, "spark sft")
    default = SftOptions(output=Path("runs") / f"{recipe.name}_start", recipe=recipe)
    options = parse(SftOptions, flags, prog=f"spark sft {name}", default=default)
    quiet_libraries()
    from spark.recipes.cold_start import SftProgress, sft

    started = time.monotonic()

    def show(progress: SftProgress) -> None:
        if progress.step % 50 == 0 or progress.step == progress.steps:
            loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
            spent = time.monotonic() - started
            print(f"{spent:5.0f} s  {progress.phase} {progress.step}/{progress.steps}{loss}")

    print(sft(options.recipe, options.output, show))
