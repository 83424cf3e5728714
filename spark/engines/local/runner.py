"""Runs one step's flattened batch through the model and keeps its paged state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark.engines.local.model import ModelShape
from spark.engines.local.step import ModelHead, ModelStep, faithful_trace
from spark_kernels import BlockPool, kv_fork


@dataclass(kw_only=True, slots=True)
class Step:
    """One flattened batch; a slot is `block * block_size + offset`.

    Example:
        Step(tokens=[5, 6, 9], positions=[0, 1, 7], slots=[16, 17, 39], rows=[17, 39], plan=plan)
    """

    tokens: list[int]
    """The T tokens to compute; may be empty."""
    positions: list[int]
    slots: list[int]
    """Where each token's KV and hidden state go."""
    rows: list[int]
    """Slots whose next-token logits are wanted, of this step or of an earlier one."""
    plan: Any = None
    """The block pool's plan of this step; None when there is nothing to compute."""


class ModelRunner:
    """Holds the paged KV of every layer and the paged final hidden states.

    With the hidden states, the logits behind any earlier token cost one row of the LM head.
    """

    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, num_blocks: int, block_size: int
    ) -> None:
        self._dtype, self._device = model.dtype, model.device
        self._shape = shape
        self._hidden, self._caches = self._buffers(num_blocks, block_size)
        paged = self._hidden.view(num_blocks, 1, block_size, -1)
        self._groups = _by_shape([*self._caches, paged])
        examples = [partial(self._example, lengths) for lengths in ([3, 2], [1], [9])]
        self._step = faithful_trace(ModelStep(model, shape.output), examples)
        self._head = faithful_trace(
            ModelHead(model, shape.output), [lambda: (self._long([1]), self._buffers(1, 2)[0])]
        )

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Compute the step's tokens; return the logits [len(rows), vocab_size]."""
        rows = self._long(step.rows)
        if not step.tokens:
            return self._head(rows, self._hidden)
        return self._step(
            self._long(step.tokens),
            self._long(step.positions),
            self._words(step.plan),
            self._long(step.slots),
            rows,
            self._hidden,
            self._caches,
        )

    @torch.inference_mode()
    def copy(self, pairs: list[tuple[int, int, int]]) -> None:
        """Copy (source block, destination block, used tokens) in every buffer."""
        for buffers in self._groups:
            kv_fork(buffers, pairs)

    def _buffers(self, num_blocks: int, block_size: int) -> tuple[Tensor, list[Tensor]]:
        """Return hidden states [num_slots, hidden_size] and the caches, keys before values."""
        where: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        layers = [self._shape.layers[layer] for layer in sorted(self._shape.layers)]
        caches = [
            torch.zeros(num_blocks, heads, block_size, width, **where)
            for heads, width in layers + layers
        ]
        return torch.zeros(num_blocks * block_size, self._shape.hidden_size, **where), caches

    def _example(self, lengths: list[int]) -> tuple[Any, ...]:
        """Return the inputs of a step that prefills sequences of these lengths."""
        pool = BlockPool(4, 4)
        seqs = [pool.open() for _ in lengths]
        for seq, length in zip(seqs, lengths, strict=True):
            pool.append(seq, length)
        places = [(pool.table(seqs[s]), i) for s, n in enumerate(lengths) for i in range(n)]
        slots = [table[i // 4] * 4 + i % 4 for table, i in places]
        tokens = [7 * i % self._shape.vocab_size for i in range(len(slots))]
        hidden, caches = self._buffers(4, 4)
        return (
            self._long(tokens),
            self._long([i for _, i in places]),
            self._words(pool.plan(seqs, lengths)),
            self._long(slots),
            self._long(slots[1:]),
            hidden,
            caches,
        )

    def _long(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _words(self, plan: Any) -> Tensor:
        """Return the plan's words; the op reads them during the call only."""
        return torch.frombuffer(plan, dtype=torch.int32).to(self._device)


def _by_shape(buffers: list[Tensor]) -> list[list[Tensor]]:
    """Group the buffers that one copy can move together."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for buffer in buffers:
        groups.setdefault(buffer.shape, []).append(buffer)
    return list(groups.values())
