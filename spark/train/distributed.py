"""Training on several processes: weights, gradients and optimiser state sharded by FSDP2.

Every process packs its own share of the trees (`spark.train.shares`); they take every
pass and every step together.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from spark.train.attention import use_tree_attention
from spark.train.exact import take_packed_rows
from spark.train.pack import Row
from spark.train.policy import token_logprobs, token_loss
from spark.train.team import join
from spark.train.trainer import (
    Batches,
    Logs,
    Objective,
    OnStep,
    add_logs,
    base_model,
    check_finite,
    precision,
    repeatable,
)


class ShardedTrainer:
    """Does what `TreeTrainer` does, with the weights spread over all processes of the team.

    A checkpoint is taken up by any number of processes.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        batches: Batches,
        loss: Objective,
        logs: Logs = lambda logprobs, example: {},
        temperature: float = 1.0,
        callbacks: Sequence[TrainerCallback] = (),
        on_step: OnStep = lambda step, loss, sums: None,
    ) -> None:
        """Shard `model`, which must be the same on every process.

        `batches` returns this process's own examples, as many as every other's; `on_step` gets the
        loss and the logs of all.
        """
        self.team, self.args = join(), args
        take_packed_rows(base_model(model))
        self.model = cast(Any, model).to(args.device)
        self._network: Any = self._shard(base_model(model))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=args.learning_rate, weight_decay=args.weight_decay
        )
        _begin(self.optimizer)
        self.state, self.control = TrainerState(), TrainerControl()
        self._batches, self._temperature = batches, temperature
        self._loss, self._logs = loss, logs
        self._callbacks, self._on_step = callbacks, on_step

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Take optimiser steps until a callback says stop, or `args.max_steps` are taken."""
        if resume_from_checkpoint:
            self.load(Path(resume_from_checkpoint))
            self.state.global_step = int(resume_from_checkpoint.rsplit("-", 1)[1])
        while self.state.global_step < self.args.max_steps:
            examples = self._batches(self.state.global_step)
            loss, sums = self.forward_backward(examples)
            self._on_step(self.state.global_step, loss, sums)
            self.optim_step()
            self.state.global_step += 1
            self._tell("on_step_end")
            if self.control.should_save:
                self._save_checkpoint()
            if self.control.should_training_stop:
                return

    def forward_backward(self, examples: Sequence[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
        """Add the gradients of all processes' examples; return the sums of their loss and logs."""
        total, sums = 0.0, dict[str, float]()
        for number, example in enumerate(examples, start=1):
            self._network.set_requires_gradient_sync(number == len(examples))
            with repeatable():
                with precision(self.args):
                    loss, logprob, _ = self._network.token_loss(
                        example["row"], self._loss(example), self._temperature
                    )
                check_finite(loss, self.state.global_step, self.args)
                add_logs(sums, self._logs(logprob, example))
                total += float(loss.detach())
                # FSDP averages over the processes
                (loss * self.team.size).backward()
        each = self.team.gather((total, sums))
        names = {name for _, logs in each for name in logs}
        logs = {name: sum(own.get(name, 0.0) for _, own in each) for name in sorted(names)}
        return sum(own for own, _ in each), logs

    def optim_step(self) -> float:
        """Clip, step and clear the gradients; return their norm before."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def logprobs(self, row: Row, model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities of the trained tokens of `row` under `model` (or ours).

        All processes ask together, each about a row of its own.
        """
        network: Any = self._network if model is None else base_model(model)
        with precision(self.args):
            scores: Tensor = network.token_logprobs(row, self._temperature)
        return scores

    def place(self, frozen: PreTrainedModel) -> PreTrainedModel:
        """Return `frozen`, sharded and ready for `logprobs`."""
        nn.Module.to(frozen, self.args.device)
        return self._shard(frozen.eval().requires_grad_(False))

    @staticmethod
    def weights(network: nn.Module) -> dict[str, Any]:
        """Return name -> whole tensor on the CPU of the leading process, {} on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(network, options=options))

    def log(self, values: dict[str, float]) -> None:
        """Tell no logger: they belong to transformers' own loop."""

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state; every process writes its part."""
        weights, state = get_state_dict(self.model, self.optimizer)
        dcp.save({"weights": weights, "optimizer": state}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Read what any number of processes has saved."""
        weights, state = get_state_dict(self.model, self.optimizer)
        dcp.load({"weights": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=weights, optim_state_dict=state)

    def _save_checkpoint(self) -> None:
        """Write the checkpoint of this step and remove those beyond `args.save_total_limit`."""
        folder = Path(str(self.args.output_dir))
        self.save(folder / f"checkpoint-{self.state.global_step}")
        self._tell("on_save")
        if self.team.leads and self.args.save_total_limit:
            saved = sorted(folder.glob("checkpoint-*"), key=lambda at: int(at.name.split("-")[1]))
            for old in saved[: -self.args.save_total_limit]:
                shutil.rmtree(old)

    def _tell(self, event: str) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(self.args, self.state, self.control)

    def _shard(self, network: PreTrainedModel) -> PreTrainedModel:
        """Return `network` with every layer's weights spread over the processes."""
        use_tree_attention(network)
        mesh = init_device_mesh(self.args.device.type, (dist.get_world_size(),))
        for layer in network.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        # these do not go through `forward`, where the root would gather its weights
        for method in (token_loss, token_logprobs):
            setattr(network, method.__name__, MethodType(method, network))
            register_fsdp_forward_method(network, method.__name__)
        return network


def _begin(optimizer: torch.optim.AdamW) -> None:
    """Give `optimizer` the state that its first step would.

    Asked for the state of one that has none, torch takes a step, which counts ever after.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
