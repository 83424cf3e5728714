"""One arm of an experiment: roll out, credit, pack, update, publish, until the tokens are spent."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from spark.core import Tree
from spark.recipes.account import ArmAccount, rollout_metrics
from spark.recipes.checkpoint import complete_checkpoint, latest_checkpoint, verified_state
from spark.recipes.config import ModelConfig, Recipe
from spark.recipes.events import Phase
from spark.recipes.journal import Journal
from spark.recipes.policy import full_state, load_policy, with_lora
from spark.recipes.session import Session
from spark.seeds import derive_seed
from spark.train.credit import CreditConfig, credit, teaches
from spark.train.loss import policy_logs, policy_loss
from spark.train.pack import Row
from spark.train.replay import Replay
from spark.train.shares import own_rows
from spark.train.team import Team
from spark.train.trainer import TreeTrainer, training_arguments
from spark_kernels import PolicyLoss

MOST_STEPS = 1_000_000


class ArmRun:
    """Trains one arm from the recipe's start, or its latest checkpoint, to its token budget."""

    def __init__(
        self,
        recipe: Recipe,
        arm: str,
        model: PreTrainedModel,
        session: Session | None,
        journal: Journal,
        on_phase: Callable[[ArmRun, Phase], None],
        team: Team,
    ) -> None:
        """`model` is left as it is; `on_phase` is called where a "rollout" or "train" ends.

        Of a team only the process that leads has a `session`.
        """
        self.recipe, self.arm = recipe.arm(arm), arm
        recipe = self.recipe
        self.account = ArmAccount()
        self.step = 0
        self.tokens_per_s = 0.0
        self.tokens_before, self.seconds_before = 0, 0.0
        self.session, self._journal, self._on_phase = session, journal, on_phase
        self._team = team
        self._folder = journal.folder / "checkpoints" / arm
        self._replay = Replay(recipe.train.replay, recipe.train.credit)
        self._minibatches: list[list[dict[str, Any]]] = []
        self._sums: dict[str, float] = {}
        self._train_started = 0.0
        start, lora = copy.deepcopy(model), recipe.model.lora
        self.model: Any = with_lora(start, lora, recipe.seed) if lora.rank else start
        self._trainer = trainer_of(team)(
            self.model,
            training_arguments(
                self._folder,
                steps=MOST_STEPS,
                lr=recipe.train.lr,
                seed=recipe.seed,
                bf16=recipe.train.bf16,
                report_to=recipe.train.report_to,
                save_total_limit=2,
            ),
            batches=self._batch,
            loss=self._loss,
            logs=self._logs,
            temperature=recipe.rollout.temperature,
            callbacks=[_StepEnd(self)],
            on_step=self._note,
        )
        self._reference = self._frozen_reference(model)

    def run(self) -> None:
        """Train until the budget is spent."""
        checkpoint = self._team.share(self._take_up() if self._team.leads else None)
        self.account, self.step = self._team.share((self.account, self.step))
        self._replay.add(self._journal.trees_of(self.arm) if self.recipe.train.replay.size else ())
        self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def weights(self) -> dict[str, Any]:
        """Return name -> tensor of the whole policy; {} where this process does not lead."""
        return full_state(self.model, self._trainer.weights)

    def _take_up(self) -> Path | None:
        """Go back to the latest checkpoint, and return it."""
        checkpoint = latest_checkpoint(self._folder)
        if checkpoint is not None:
            state = verified_state(checkpoint)
            if state.get("sharded", False) != self._team.sharded:
                way = "without torchrun" if self._team.sharded else "under torchrun"
                raise ValueError(f"checkpoint {checkpoint} was written {way}: resume it like that")
            self.account, self.step = ArmAccount(**state["account"]), state["step"]
        self._journal.drop_after(self.arm, self.step)
        return checkpoint

    @property
    def spent(self) -> float:
        """Share of the budget that is gone."""
        return self.recipe.spent(self.account.generated_tokens, self.account.seconds)

    def end_update(self, optimiser_step: int) -> tuple[bool, bool]:
        """Note that an optimiser step was taken; return (save a checkpoint?, stop?)."""
        config = self.recipe.train
        if optimiser_step % config.minibatches:
            return False, False
        seconds = time.perf_counter() - self._train_started
        self.account.train_wall_s += seconds
        if self._team.leads:
            self._write_train_metrics(seconds)
        self.step += 1
        self._on_phase(self, "train")
        stop = self._team.share(self.spent >= 1)
        return self.step % config.checkpoint_every == 0 and not stop, stop

    def save_state(self, optimiser_step: int) -> None:
        """Complete the trainer's checkpoint with the arm's own state."""
        folder = self._folder / f"checkpoint-{optimiser_step}"
        own = {"step": self.step, "account": asdict(self.account), "sharded": self._team.sharded}
        if self._team.leads:
            complete_checkpoint(folder, own)

    def _batch(self, optimiser_step: int) -> list[dict[str, Any]]:
        """Return the rows of an optimiser step, after a rollout where one is due."""
        number = optimiser_step % self.recipe.train.minibatches
        if number == 0:
            weights = self.weights()
            trees = self._roll_out(self.session, weights) if self.session else []
            trees, self.account = self._team.share((trees, self.account))
            self._on_phase(self, "rollout")
            self._train_started = time.perf_counter()
            self._sums = {}
            self._minibatches = self._prepare(trees)
        return self._minibatches[number]

    def _roll_out(self, session: Session, weights: dict[str, Any]) -> list[Tree]:
        """Return the trees of this step, sampled with the current weights."""
        started = time.perf_counter()
        train = self.recipe.train
        self.tokens_before = self.account.generated_tokens
        self.seconds_before = self.account.seconds
        session.publish(weights, self.step)
        games = session.train_games()
        first = self.step * train.games_per_step
        tasks = [games[(first + k) % len(games)] for k in range(train.games_per_step)]
        before = session.engine.stats()
        seed = derive_seed("train", self.recipe.seed, self.step)
        trees = session.rollout(tasks, self.recipe.rollout, seed)
        after = session.engine.stats()
        seconds = time.perf_counter() - started
        self.account.rollout_wall_s += seconds
        self.account.prefilled_tokens += after["prefilled"] - before["prefilled"]
        self.account.recomputed_tokens += after["recomputed"] - before["recomputed"]
        for tree in trees:
            self.account.add(tree)
        noted = {"arm": self.arm, "step": self.step, "credit": asdict(self._credit())}
        for tree in trees:
            tree.info |= noted
            self._journal.add_tree(tree)
        self.tokens_per_s = sum(tree.info["generated"] for tree in trees) / seconds
        self._journal.add_metrics(
            arm=self.arm,
            step=self.step,
            phase="rollout",
            **rollout_metrics(trees),
            forks=self.account.forks,
            reused_share=self.account.reused_share,
            generated_tokens=self.account.generated_tokens,
            tokens_per_s=self.tokens_per_s,
            rollout_s=seconds,
        )
        return trees

    def _credit(self) -> CreditConfig:
        """Return how trees are judged: the bonus for novelty fades with what trees have cost."""
        train = self.recipe.train
        share = train.replay.imitation(self.spent) if train.replay.size else 0.0
        return replace(train.credit, novelty_bonus=train.credit.novelty_bonus * (1 - share))

    def _prepare(self, trees: list[Tree]) -> list[list[dict[str, Any]]]:
        """Return the rows of every minibatch with what the loss needs besides them.

        A tree whose leaves all earned the same teaches nothing and is left out.
        """
        train, config = self.recipe.train, self._credit()
        graded = [(tree, credit(tree, config)) for tree in trees]
        fresh = [(tree, terms) for tree, terms in graded if teaches(terms)]
        seed = derive_seed("replay", self.recipe.seed, self.step)
        again = self._replay.draw(self.spent, seed)
        self._replay.add(trees)
        minibatches = []
        for new, old in zip(
            in_parts(fresh, train.minibatches), in_parts(again, train.minibatches), strict=True
        ):
            # beside fresh trees or not at all: alone, replays would weigh as much as anything
            both = [*new, *old] if new else []
            rows, total, targets = own_rows(both, self._team, train.row_tokens)
            minibatches.append([self._example(row, total) for row in rows])
            self.account.trained_tokens += targets
        return minibatches

    def _example(self, row: Row, total: float) -> dict[str, Any]:
        """Return `row` with the log-probabilities before the update and of the reference."""
        return {
            "row": row,
            "total": total,
            "old": self._trainer.logprobs(row),
            "reference": self._reference_logprobs(row),
        }

    def _frozen_reference(self, start: PreTrainedModel) -> PreTrainedModel | None:
        """Return the network of the KL term; None where there is none, or adapters hide it."""
        train = self.recipe.train
        if not train.loss.kl or (self.recipe.model.lora.rank and train.reference is None):
            return None
        if train.reference is None:
            frozen = copy.deepcopy(start)
        else:
            frozen, _ = load_policy(ModelConfig(path=train.reference))
        return self._trainer.place(frozen)

    def _reference_logprobs(self, row: Row) -> Tensor | None:
        if not self.recipe.train.loss.kl:
            return None
        if self._reference is not None:
            return self._trainer.logprobs(row, self._reference)
        with self.model.disable_adapter():
            return self._trainer.logprobs(row)

    def _loss(self, example: dict[str, Any]) -> PolicyLoss:
        scores = (example["old"], example["reference"], example["row"])
        return policy_loss(*scores, self.recipe.train.loss, example["total"])

    def _logs(self, logprobs: Tensor, example: dict[str, Any]) -> dict[str, Tensor]:
        scores = (example["old"], example["reference"], example["row"])
        return policy_logs(logprobs, *scores, self.recipe.train.loss)

    def _note(self, step: int, loss: float, sums: dict[str, float]) -> None:
        """Add up what an optimiser step logged."""
        for name, value in {**sums, "loss": loss}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _write_train_metrics(self, seconds: float) -> None:
        tokens = max(1.0, self._sums.get("tokens", 0.0))
        values = {
            "loss": self._sums.get("loss", 0.0) / self.recipe.train.minibatches,
            "kl": self._sums.get("kl", 0.0) / tokens,
            "clip_ratio": self._sums.get("clipped", 0.0) / tokens,
            "logprob_mismatch": self._sums.get("mismatch", 0.0) / tokens,
            "trained_tokens": self.account.trained_tokens,
            "train_s": seconds,
        }
        self._journal.add_metrics(arm=self.arm, step=self.step, phase="train", **values)
        # for the loggers of `report_to`
        self._trainer.log(values)


def in_parts(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Return `items` in order as `count` parts of about the same length."""
    bounds = [len(items) * part // count for part in range(count + 1)]
    return [items[first:last] for first, last in pairwise(bounds)]


def trainer_of(team: Team) -> Any:
    """Return the class that trains: transformers' own loop, or the one over sharded weights."""
    if not team.sharded:
        return TreeTrainer
    from spark.train.distributed import ShardedTrainer

    return ShardedTrainer


class _StepEnd(TrainerCallback):
    """Tells the trainer when to save and when the tokens are spent."""

    def __init__(self, run: ArmRun) -> None:
        self._run = run

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide at the end of the last minibatch of a rollout."""
        control.should_save, control.should_training_stop = self._run.end_update(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the arm's state last: a checkpoint without it is not complete."""
        self._run.save_state(state.global_step)
