"""Supervised training on given episodes: weighted likelihood of the tokens of a tree."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spark.core import Tree
from spark.train.config import SftConfig
from spark.train.credit import Term
from spark.train.muon import MuonAdamW
from spark.train.pack import Row, pack
from spark.train.trainer import TreeTrainer, training_arguments
from spark_kernels.head_loss import Loss

Demonstration = tuple[Tree, list[list[Term]]]
"""An episode and, for every node, what its tokens weigh in the loss; [] = not trained."""


def fit(
    model: nn.Module,
    demonstrations: Sequence[Demonstration],
    config: SftConfig,
    *,
    seed: int,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `model` in place. The rate falls linearly to zero.

    Args:
        model: a transformers model, bare or wrapped by peft.
        demonstrations: the episodes; they are shuffled anew in every pass.
        config: constants.
        seed: seed of the shuffling.
        folder: where the trainer may write.
        on_step: called with the number and the loss of every step.

    Raises ValueError when there are no demonstrations.
    """
    if not demonstrations:
        raise ValueError("no demonstrations: there is nothing to imitate")
    rows = _endless(demonstrations, config.batch_tokens, seed)

    def likelihood(example: dict[str, Any]) -> Loss:
        """Return the weighted mean of the negative log-likelihood."""
        whole: Row = example["row"]

        def share(logprobs: Tensor, entropy: Tensor, part: slice) -> Tensor:
            row = whole.part(part).to(logprobs.device)
            return -(row.weight * logprobs[row.term_target]).sum() / float(whole.weight.sum())

        return share

    trainer = TreeTrainer(
        model,
        training_arguments(
            folder,
            steps=config.steps,
            lr=config.lr,
            seed=seed,
            lr_scheduler_type="linear",
            bf16=config.bf16,
        ),
        batches=lambda step: [{"row": next(rows)}],
        loss=likelihood,
        optimizer=MuonAdamW(model, matrix_lr=config.matrix_lr, lr=config.lr),
        on_step=lambda step, loss, sums: on_step(step + 1, loss),
    )
    trainer.train()


def _endless(
    demonstrations: Sequence[Demonstration], batch_tokens: int, seed: int
) -> Iterator[Row]:
    """Yield rows of about `batch_tokens` tokens, pass after pass."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(demonstrations, len(demonstrations))
        yield from pack((tree for tree, _ in order), (terms for _, terms in order), batch_tokens)
