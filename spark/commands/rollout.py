"""`spark rollout RECIPE`: roll out trees and write them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from spark.commands.arguments import named_recipe, parse, quiet_libraries
from spark.commands.eval import with_policy
from spark.recipes.config import Recipe


@dataclass(kw_only=True, slots=True)
class RolloutOptions:
    """Roll out one tree per task; the folder it writes is one that `spark view` shows."""

    output: Path
    """Folder for trees.jsonl and the tokenizer; it must not hold trees yet."""
    policy: str | None = None
    """Folder or model name; None = the recipe's start."""
    split: str = "L0"
    """L0: like training, L1: further away, L2: furthest (docs/environments.md says how)."""
    tasks: int = 8
    """Number of tasks, one tree each."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    name, recipe, flags = named_recipe(argv, "spark rollout")
    default = RolloutOptions(output=Path("runs") / f"{recipe.name}_trees", recipe=recipe)
    options = parse(RolloutOptions, flags, prog=f"spark rollout {name}", default=default)
    quiet_libraries()
    if options.tasks < 1:
        raise ValueError(f"tasks={options.tasks} must be at least 1")
    path = options.output / "trees.jsonl"
    if path.exists():
        raise ValueError(f"output={options.output} holds trees already; choose another folder")
    from spark.recipes.policy import load_policy
    from spark.recipes.session import Session
    from spark.rollout.driver import Event
    from spark.rollout.store import save_tree
    from spark.view.records import tree_facts

    recipe = with_policy(options.recipe, options.policy)
    model, tokenizer = load_policy(recipe.model)

    def save(event: Event) -> None:
        if event.tree is not None:
            save_tree(path, event.tree)
            print(f"{event.tree.task}: {' · '.join(tree_facts(event.tree))}")

    with Session(recipe, model, tokenizer) as session:
        tasks = session.tasks(options.split, options.tasks, recipe.seed)
        options.output.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(options.output / "tokenizer")
        session.rollout(tasks, recipe.rollout, recipe.seed, save)
    print(path)
