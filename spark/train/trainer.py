"""`transformers.Trainer` on packed trees: it brings checkpoints, resume, LoRA and loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from spark.train.attention import use_tree_attention
from spark.train.exact import take_packed_rows
from spark.train.pack import Row
from spark.train.policy import token_logprobs, token_loss
from spark_kernels.head_loss import Loss

Batches = Callable[[int], Sequence[dict[str, Any]]]
"""Optimiser step -> its examples; each has "row" and whatever else the loss looks at."""
Objective = Callable[[dict[str, Any]], Loss]
"""Example -> what its trained tokens add to the step's loss."""
Logs = Callable[[Tensor, dict[str, Any]], dict[str, Tensor]]
"""(log-probabilities [N] of its trained tokens, example) -> sums to log."""

OnStep = Callable[[int, float, dict[str, float]], None]
"""Called before every optimiser step with its number, loss and summed logs."""


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


class TreeTrainer(Trainer):
    """Takes one optimiser step on all rows of a batch, one row in memory at a time."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        batches: Batches,
        loss: Objective,
        logs: Logs = lambda logprobs, example: {},
        temperature: float = 1.0,
        optimizer: torch.optim.Optimizer | None = None,
        callbacks: list[TrainerCallback] | None = None,
        on_step: OnStep = lambda step, loss, sums: None,
    ) -> None:
        """`temperature`: the one the tokens were drawn at."""
        take_packed_rows(base_model(model))
        self._batches = batches
        self._loss, self._logs = loss, logs
        self._temperature = temperature
        self._on_step = on_step
        self._sums: dict[str, float] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=_Steps(args.max_steps),
            data_collator=dict.fromkeys,
            optimizers=(optimizer, None),
            callbacks=callbacks,
        )
        # it prints the logs that `on_step` hands out
        self.remove_callback(PrinterCallback)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Accumulate the gradients of the batch of the current step."""
        self._sums = {}
        total = torch.zeros((), device=self.args.device)
        for example in self._batches(self.state.global_step):
            with repeatable():
                total += super().training_step(model, example, num_items_in_batch)
        self._on_step(self.state.global_step, total.item(), self._sums)
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Return the loss of one row. Raises TrainingError when it is not finite."""
        assert self.model is not None
        network = base_model(self.model)
        found = token_loss(network, inputs["row"], self._loss(inputs), self._temperature)
        check_finite(found.loss, self.state.global_step, self.args)
        add_logs(self._sums, self._logs(found.logprob, inputs))
        return found.loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> torch.autocast:
        """Return the precision of training; accelerate sets it in the model's `forward` only."""
        return precision(self.args)

    def place(self, frozen: PreTrainedModel) -> PreTrainedModel:
        """Return `frozen`, ready for `logprobs`."""
        use_tree_attention(frozen)
        nn.Module.to(frozen, self.args.device)
        return frozen.eval().requires_grad_(False)

    @staticmethod
    def weights(network: nn.Module) -> dict[str, Any]:
        """Return name -> tensor of `network`."""
        return dict(network.state_dict())

    def logprobs(self, row: Row, model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities of the trained tokens of `row` under `model` (or ours).

        Without a graph, at the precision of training.
        """
        network = self.model if model is None else model
        assert network is not None
        with self.compute_loss_context_manager():
            return token_logprobs(base_model(network), row, self._temperature)


def precision(args: TrainingArguments) -> torch.autocast:
    """Return the context to compute in; weights stay float32."""
    return torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16)


def add_logs(sums: dict[str, float], logs: dict[str, Tensor]) -> None:
    """Add `logs` to `sums`."""
    for name, value in logs.items():
        sums[name] = sums.get(name, 0.0) + value.item()


def check_finite(loss: Tensor, step: int, args: TrainingArguments) -> None:
    """Raise TrainingError when the loss of a row is not finite."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} at step {step}: start anew, in another folder, with a "
            f"learning rate below {args.learning_rate:g}"
        )


@contextmanager
def repeatable() -> Iterator[None]:
    """Add gradients up in a fixed order; torch's threads otherwise add them as they come."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Steps(Dataset):
    """As many empty items as there are optimiser steps; `batches` makes the data when asked."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return "step"


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside `model`, which may be wrapped by peft."""
    unwrap = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    assert isinstance(inner, PreTrainedModel)
    return inner


def training_arguments(
    folder: Path, *, steps: int, lr: float, seed: int, bf16: bool | None = None, **options: Any
) -> TrainingArguments:
    """Return quiet arguments with constant settings for everything `TreeTrainer` decides itself.

    `bf16` None: where there is a GPU.
    """
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() if bf16 is None else bf16,
    }
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=lr, seed=seed, **defaults | options
    )
