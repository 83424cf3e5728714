"""A policy ready to act: an engine, the tasks and the chat, behind ordinary function calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.core import Tree
from spark.engines import ENGINES
from spark.engines.affinity import AffinityEngine
from spark.envs import load_source
from spark.envs.base import EnvSource
from spark.envs.pool import PooledSource
from spark.recipes.config import EnvConfig, Recipe
from spark.recipes.embedded import embedded
from spark.recipes.policy import full_state
from spark.rollout.chat import Chat
from spark.rollout.config import RolloutConfig
from spark.rollout.driver import Event, rollout
from spark.seeds import derive_seed


def make_source(config: EnvConfig, *, constrain: bool = True) -> EnvSource:
    """Return the source of tasks. Raises ValueError for an unknown environment, or none.

    `constrain`: commands are chosen among the admissible ones; free text may also say those that
    change nothing, which ALFWorld then counts as admissible.
    """
    if config.name == "alfworld":
        games = {"scenes": config.scenes} if config.data is None else {"data": config.data}
        source = load_source(config.name, **games, idle_commands=not constrain)
    else:
        options = getattr(config, config.name, None)
        source = load_source(config.name, *([] if options is None else [options]))
    return PooledSource(source, workers=config.workers) if config.workers else source


GAMES_SEED = 10_000
"""Added to the recipe's seed, so that the training games are not those of the cold start."""


class Session:
    """Rolls out the tasks of a recipe with one policy; use it as a context manager."""

    def __init__(
        self, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """The engine gets a copy of `model`; `publish` brings it up to date.

        Raises ValueError for an unknown engine, or a server that is none of Spark's.
        """
        self.recipe = recipe
        self.source = make_source(recipe.env, constrain=recipe.rollout.constrain)
        self.chat = Chat(tokenizer, template=recipe.model.template, system=recipe.model.system)
        self._runner = asyncio.Runner()
        if recipe.url is None:
            self.engine: Any = embedded(recipe, model, tokenizer)
        else:
            servers = [ENGINES[recipe.engine](url) for url in recipe.url.split(",")]
            self.engine = AffinityEngine(servers) if len(servers) > 1 else servers[0]
        if recipe.engine != "local":
            try:
                self.publish(full_state(model), 0)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._runner.run(self.engine.__aexit__(kind, error, trace))
        finally:
            self._runner.close()
            if hasattr(self.source, "close"):
                self.source.close()

    def rollout(
        self,
        tasks: Sequence[str],
        config: RolloutConfig,
        seed: int,
        on_event: Callable[[Event], None] | None = None,
    ) -> list[Tree]:
        """Return one tree per task, in order."""
        return self._runner.run(
            rollout(
                tasks,
                engine=self.engine,
                source=self.source,
                chat=self.chat,
                config=config,
                seed=seed,
                on_event=on_event,
            )
        )

    def publish(self, state: dict[str, torch.Tensor], version: int) -> None:
        """Give the engine the weights `state`."""
        self._runner.run(self.engine.update_weights(state, version))

    def prepare(self) -> None:
        """Make all games of the recipe in all processes the source can use, where it can."""
        prepare = getattr(self.source, "prepare", None)
        if prepare is not None:
            splits = self.recipe.eval.splits
            prepare([*self.train_games(), *(t for split in splits for t in self.eval_games(split))])

    def tasks(self, split: str, count: int, seed: int) -> Sequence[str]:
        """Return `count` tasks of `split`. Raises ValueError where the environment has none."""
        if tasks := self.source.tasks(split, count, seed):
            return tasks
        name = self.recipe.env.name
        raise ValueError(f"env.name={name!r} has no tasks in split {split!r}: choose another one")

    def train_games(self) -> Sequence[str]:
        """Return the tasks that the arms train on."""
        recipe = self.recipe
        return self.tasks("train", recipe.env.train_games, GAMES_SEED + recipe.seed)

    def eval_games(self, split: str) -> Sequence[str]:
        """Return the fixed evaluation tasks of `split`. Raises ValueError when there are none."""
        config = self.recipe.eval
        if split not in config.splits:
            known = ", ".join(config.splits) or "none"
            raise ValueError(f"split {split!r} has no games; those of eval.games: {known}")
        return self.tasks(split, config.games[split], config.seed)

    def evaluate(self, split: str) -> float:
        """Return the success rate on the fixed evaluation set of `split`."""
        wins = self.evaluate_games(split)
        return sum(wins) / len(wins)

    def evaluate_games(self, split: str) -> list[bool]:
        """Return game by game whether the policy solved it."""
        config = self.recipe.eval
        one_each = replace(
            self.recipe.rollout,
            rule="none",
            branch_at="next",
            planner="none",
            leaves=1,
            roots=1,
            # of training: what they cut off would count as not solved
            max_seconds=None,
            max_generated_tokens=None,
            temperature=config.temperature,
        )
        seed = derive_seed("evaluate", split, config.seed)
        trees = self.rollout(self.eval_games(split), one_each, seed)
        if errors := [error for tree in trees for error in tree.info["errors"]]:
            raise RuntimeError(
                f"{len(errors)} of {len(trees)} evaluation games failed; {errors[0]['error']}"
            )
        return [any(leaf["won"] for leaf in tree.info["leaves"]) for tree in trees]
