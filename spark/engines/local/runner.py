"""Runs one step's flattened batch through the model and keeps its paged state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark.engines.local.attention import Unfit
from spark.engines.local.device import DecodeBatch, Pages, bucket, upload
from spark.engines.local.model import ModelShape, fitting
from spark.engines.local.packed import PackedWeights
from spark.engines.local.step import ModelHead, ModelStep, faithful_trace
from spark_kernels import BlockPool, Plan, kv_fork
from spark_kernels.tree_attention import DevicePlan

MOST_CAPTURED = 512
"""Largest decode batch that has static buffers; a larger one runs like a prefill."""


@dataclass(kw_only=True, slots=True)
class Step:
    """One flattened batch; a slot is `block * block_size + offset`.

    Example:
        Step(tokens=[5, 6, 9], positions=[0, 1, 7], slots=[16, 17, 39], rows=[17, 39],
             seqs=[3, 8], counts=[2, 1])
    """

    tokens: list[int]
    """The T tokens to compute; may be empty."""
    positions: list[int]
    slots: list[int]
    """Where each token's KV and hidden state go."""
    rows: list[int]
    """Slots whose next-token logits are wanted, of this step or of an earlier one."""
    seqs: list[int] = field(default_factory=list)
    """Handles in the block pool of the sequences that the tokens belong to."""
    counts: list[int] = field(default_factory=list)
    """Tokens of each."""


class ModelRunner:
    """Holds the paged KV of every layer and the paged final hidden states.

    With the hidden states, the logits behind any earlier token cost one row of the LM head.
    """

    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, pool: BlockPool, pack: bool
    ) -> None:
        """`pack`: compute with packed weights where that is faster."""
        self._dtype, self._device = model.dtype, model.device
        self._shape = shape
        self._pages = self._buffers(pool)
        paged = self._pages.hidden.view(pool.num_blocks + 1, 1, pool.block_size, -1)
        self._groups = _by_shape([*self._pages.caches, paged])
        self._weights = PackedWeights(model.modules() if pack else ())
        parts = (model, shape, self._weights)
        step, head = ModelStep(*parts), ModelHead(*parts)
        self._step: Callable[..., Tensor] = step
        self._head: Callable[..., Tensor] = head
        self._on_device = uses_device_plans(model.device)
        self._batches: dict[int, DecodeBatch] = {}
        with fitting(model):
            self._check(model)
        if not self._on_device:
            examples = [partial(self._example, lengths) for lengths in ([3, 2], [1], [9])]
            self._step = faithful_trace(step, examples)
            alone = self._buffers(BlockPool(1, 2)).hidden
            self._head = faithful_trace(head, [lambda: (self._long([1]), alone, *self._packed())])

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Compute the step's tokens; return the logits [len(rows), vocab_size]."""
        pages = self._pages
        if not step.tokens:
            return self._head(self._long(step.rows), pages.hidden, *self._packed())
        size = max(len(step.seqs), len(step.rows))
        if self._on_device and len(step.tokens) == len(step.seqs) and size <= MOST_CAPTURED:
            batch = self._batch(bucket(size))
            return batch.step(step.seqs, step.tokens, step.positions, step.slots, step.rows)
        positions = self._long(step.positions)
        return self._step(
            self._long(step.tokens),
            positions,
            self._plan(pages.pool, step.seqs, step.counts, positions),
            self._long(step.slots),
            self._long(step.rows),
            pages.hidden,
            pages.caches,
            *self._packed(),
        )

    @torch.inference_mode()
    def copy(self, pairs: list[tuple[int, int, int]]) -> None:
        """Copy (source block, destination block, used tokens) in every buffer."""
        for buffers in self._groups:
            kv_fork(buffers, pairs)

    def _batch(self, size: int) -> DecodeBatch:
        if size not in self._batches:
            pool = self._pages.pool
            tokens = self._shape.context or pool.num_blocks * pool.block_size
            width = min(-(-tokens // pool.block_size), pool.num_blocks)
            self._batches[size] = DecodeBatch(size, width, self._step, self._pages)
        return self._batches[size]

    def _buffers(self, pool: BlockPool) -> Pages:
        """Return memory for every block of `pool`, and hidden states of one block more."""
        where: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        layers = [self._shape.layers[layer] for layer in sorted(self._shape.layers)]
        size, count = pool.block_size, pool.num_blocks
        caches = [torch.zeros(count, heads, size, width, **where) for heads, width in 2 * layers]
        hidden = torch.zeros((count + 1) * size, self._shape.hidden_size, **where)
        return Pages(pool=pool, hidden=hidden, caches=caches)

    def _example(self, lengths: list[int]) -> tuple[Any, ...]:
        """Return the inputs of a step that prefills sequences of these lengths."""
        pool = BlockPool(4, 4)
        seqs = [pool.open() for _ in lengths]
        for seq, length in zip(seqs, lengths, strict=True):
            pool.append(seq, length)
        places = [(pool.table(seqs[s]), i) for s, n in enumerate(lengths) for i in range(n)]
        slots = [table[i // 4] * 4 + i % 4 for table, i in places]
        tokens = [7 * i % self._shape.vocab_size for i in range(len(slots))]
        pages = self._buffers(pool)
        positions = self._long([i for _, i in places])
        return (
            self._long(tokens),
            positions,
            self._plan(pool, seqs, lengths, positions),
            self._long(slots),
            self._long(slots[1:]),
            pages.hidden,
            pages.caches,
            *self._packed(),
        )

    @torch.inference_mode()
    def _check(self, model: PreTrainedModel) -> None:
        """Raise ValueError where the model by itself gives other logits: it does more than attend
        over pages and positions.
        """
        tokens, *_ = example = self._example([4, 3])
        ours = self._step(*example).float()
        rows = [
            model(input_ids=ids[None], use_cache=False).logits[0] for ids in tokens.split([4, 3])
        ]
        theirs = torch.cat(rows)[1:].float()
        # kernels and precisions differ; broken weights are told by the request that meets them
        allowed = (0.01 if self._dtype == torch.float32 else 0.2) * theirs.std()
        if (ours - theirs).abs().mean() > allowed:
            raise Unfit("over pages it gives other logits than by itself")

    def _plan(
        self, pool: BlockPool, seqs: list[int], counts: list[int], positions: Tensor
    ) -> Tensor | DevicePlan:
        plan = pool.plan(seqs, counts)
        if self._on_device:
            return DevicePlan(plan, self._device, positions=positions)
        return words(plan)

    def _packed(self) -> tuple[list[Tensor], ...]:
        """Return the packed weights as an argument, or no argument where there are none."""
        packed = self._weights.tensors()
        return (packed,) if packed else ()

    def _long(self, values: list[int]) -> Tensor:
        return upload(values, self._device)


def uses_device_plans(device: torch.device) -> bool:
    """Return whether attention runs from plans on the device; the CPU's op reads the host's."""
    return device.type == "cuda"


def words(plan: Plan) -> Tensor:
    """Return the plan's words; the op reads them during the call only."""
    return torch.frombuffer(plan, dtype=torch.int32)


def _by_shape(buffers: list[Tensor]) -> list[list[Tensor]]:
    """Group the buffers that one copy can move together."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for buffer in buffers:
        groups.setdefault(buffer.shape, []).append(buffer)
    return list(groups.values())
