"""Decode steps on a GPU: static buffers, a plan that stays there, and a captured graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spark_kernels import BlockPool
from spark_kernels.guard import on
from spark_kernels.tree_attention import DevicePlan

logger = logging.getLogger(__name__)

HEADROOM = 256
"""Tokens a sequence may gain before the work list is packed again."""

Run = Callable[[], None]
ModelFunction = Callable[..., Tensor]


@dataclass(kw_only=True, slots=True)
class Pages:
    """What every step reads and writes.

    pool: the block pool. hidden: [num_slots + block_size, hidden_size]; the slots behind the pool's
    are nobody's: rows that only fill a batch up go there. caches: keys of all layers, then values.
    """

    pool: BlockPool
    hidden: Tensor
    caches: list[Tensor]

    @property
    def null_slot(self) -> int:
        """A slot that belongs to no sequence."""
        return self.pool.num_blocks * self.pool.block_size


def bucket(rows: int) -> int:
    """Return the batch size that a step of `rows` rows is padded to."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    unit = 8 if rows <= 64 else 32
    return -(-rows // unit) * unit


def upload(values: Any, device: torch.device) -> Tensor:
    """Return `values` as int64 on `device`; the host does not wait for the copy."""
    host = torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def capture(run: Run, device: torch.device) -> Run:
    """Return what repeats `run` on the same tensors: a CUDA graph, or `run` itself.

    `run` itself on a CPU, and where the model looks at its tensors on the host (RoPE that depends
    on the longest position): a graph would keep one outcome, and capture fails.
    """
    if device.type != "cuda":
        return run
    said = _wait(run)
    if said is None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                run()
            return graph.replay
        except RuntimeError as error:
            # torch stays on the stream of a capture that failed
            torch.cuda.set_stream(stream)
            said = str(error)
    logger.warning("decode steps run without a CUDA graph: %s", said.partition("\n")[0])
    return run


def _wait(run: Run) -> str | None:
    """Return what is said where `run` waits for the device, None where it does not.

    A capture would fail there, and its allocator would go on allocating for it.
    """
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return None


class DecodeBatch:
    """Steps of up to `size` sequences, one token of each.

    Only tokens, positions, slots and rows are uploaded in a step; new blocks are entered into the
    tables on the device. The work list is packed when other sequences step, when one has grown
    elsewhere, or outgrows the list.
    """

    def __init__(self, size: int, width: int, model: ModelFunction, pages: Pages) -> None:
        """`width`: blocks of the longest sequence there may be. `model`: a `ModelStep`."""
        self._size, self._model, self._pages = size, model, pages
        device = pages.hidden.device
        self._inputs = torch.zeros(4, size, dtype=torch.int64, device=device)
        room = {"table_rows": size, "table_width": width, "headroom": HEADROOM}
        self._plan = DevicePlan(
            pages.pool.plan([], []), device, positions=self._inputs[1], fixed_launch=True, **room
        )
        self._seqs: list[int] = []
        self._positions: list[int] = []
        self._left = 0
        self._captured = -1
        self._replay: Run = self._run
        self._logits = torch.empty(0, device=device)

    def step(
        self,
        seqs: list[int],
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        rows: Sequence[int],
    ) -> Tensor:
        """Compute one token of each sequence; return the logits [len(rows), V] behind `rows`."""
        with on(self._inputs.device):
            null = self._pages.null_slot
            parts = ((tokens, 0), (positions, 0), (slots, null), (rows, null))
            padded = [[*part, *[fill] * (self._size - len(part))] for part, fill in parts]
            self._inputs.copy_(upload(padded, self._inputs.device), non_blocking=True)
            # what grew elsewhere since has blocks that the tables here have not
            follows = list(positions) == [position + 1 for position in self._positions]
            fresh = seqs != self._seqs or not follows or self._left == 0
            if fresh:
                self._plan.renew(self._pages.pool.plan(seqs, [1] * len(seqs)))
                self._seqs = list(seqs)
            self._positions = list(positions)
            if self._plan.moves != self._captured:
                # layers ask for their work lists here, and libraries for their workspace
                self._run()
                self._replay = capture(self._run, self._inputs.device)
                self._captured = self._plan.moves
            self._left = self._plan.growth if fresh else self._left - 1
            self._replay()
            return self._logits[: len(rows)]

    def _run(self) -> None:
        tokens, positions, slots, rows = self._inputs.unbind()
        self._plan.extend_tables(slots // self._pages.pool.block_size)
        pages = self._pages
        self._logits = self._model(
            tokens, positions, self._plan, slots, rows, pages.hidden, pages.caches
        )
