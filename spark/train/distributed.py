"""Training on several processes: weights sharded by FSDP2, trees shared out by unique tokens.

Started by torchrun. Three verbs make a step: every rank packs its own share of the trees,
`forward_backward` adds the gradients of all of them, `optim_step` moves the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
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
from transformers import PreTrainedModel

from spark.core import Node, Tree
from spark.train.attention import use_tree_attention
from spark.train.pack import Row, pack
from spark.train.policy import token_loss

RowLoss = Callable[[Tensor, Row], Tensor]
"""(log-probabilities [N], row or a part of it) -> its summed loss, to be divided by all weights."""


def join() -> tuple[int, int]:
    """Join the processes that torchrun started, or be the only one; return (rank, their number)."""
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group()
        else:
            dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


def shared_out(trees: Sequence[Tree], ranks: int) -> list[list[int]]:
    """Return for every rank the indices of its trees: large ones first, to who has least so far.

    The load of a tree is its unique tokens, which is what packing forwards.
    """
    sizes = [sum(len(node.tokens) for node in tree.nodes) for tree in trees]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(trees)), key=lambda index: (-sizes[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += sizes[index]
    return [sorted(share) for share in shares]


class ShardedTrainer:
    """A model whose weights, gradients and optimiser state are spread over all processes."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        temperature: float = 1.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        """`model` must be the same on every rank; `temperature` is the tokens' own."""
        _, self.world = join()
        use_tree_attention(model)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        mesh = init_device_mesh(device.type, (self.world,))
        self.model = cast(Any, model)
        self.model.to(device)
        for layer in self.model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        # the loss does not go through `forward`, where the root would gather its weights
        self.model.token_loss = MethodType(token_loss, self.model)
        register_fsdp_forward_method(self.model, "token_loss")
        self.optimizer = optimizer(self.model.parameters())
        self._temperature, self._max_grad_norm = temperature, max_grad_norm

    def forward_backward(self, rows: Sequence[Row], loss: RowLoss) -> float:
        """Add the gradients of all ranks' rows; return their loss over the sum of all weights.

        Args:
            rows: this rank's own, any number.
            loss: summed loss of a row, or of some of its tokens.

        Raises ValueError when no rank has a row.
        """
        weight = sum(float(row.weight.sum()) for row in rows)
        steps, total = self._over_ranks(len(rows), dist.ReduceOp.MAX), self._over_ranks(weight)
        if not steps:
            raise ValueError("rows: no process has any; there is nothing to learn from")
        value = 0.0
        for number in range(int(steps)):
            # all take part in every exchange: who has fewer rows adds one that weighs nothing
            row, factor = (rows[number], 1.0) if number < len(rows) else (_idle_row(), 0.0)

            def share(
                logprob: Tensor,
                entropy: Tensor,
                part: slice,
                row: Row = row,
                factor: float = factor,
            ) -> Tensor:
                # FSDP averages over the ranks
                return loss(logprob, row.part(part)) * factor * self.world / total

            self.model.set_requires_gradient_sync(number + 1 == steps)
            own = self.model.token_loss(row, share, self._temperature)
            value += float(own.detach()) / self.world
            own.backward()
        return self._over_ranks(value)

    def optim_step(self) -> float:
        """Clip, step and clear the gradients; return their norm before."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def full_state(self) -> dict[str, Any]:
        """Return the whole weights on the CPU of rank 0, {} on the others: what engines load."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(self.model, options=options))

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state; every rank writes its part."""
        weights, state = get_state_dict(self.model, self.optimizer)
        dcp.save({"weights": weights, "optimizer": state}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Read what any number of processes has saved."""
        weights, state = get_state_dict(self.model, self.optimizer)
        dcp.load({"weights": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=weights, optim_state_dict=state)

    def _over_ranks(self, value: float, how: Any = dist.ReduceOp.SUM) -> float:
        device = next(self.model.parameters()).device
        reduced = torch.tensor(value, dtype=torch.float32, device=device)
        dist.all_reduce(reduced, how)
        return float(reduced)


def _idle_row() -> Row:
    """Return a row of two tokens and no terms."""
    nodes = [
        Node(parent=parent, tokens=[0], sampled=[drawn], logprobs=[0.0], log_kept_mass=[0.0])
        for parent, drawn in ((None, False), (0, True))
    ]
    (row,) = pack([Tree(task="idle", seed=0, nodes=nodes)], [[[], []]], 2)
    return row
