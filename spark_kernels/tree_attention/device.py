"""A plan where the GPU kernel reads it, and the kernel's launch."""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spark_kernels._C import Plan, Schedule
from spark_kernels.guard import on

SMALL_ROWS = 16
TABLES = 16  # words before the block tables


@functools.cache
def available() -> bool:
    """Return whether Triton is installed; warn once where it is not."""
    if find_spec("triton") is None:
        warnings.warn(
            "triton is not installed: tree_attention runs its slow reference on CUDA; "
            "pip install triton",
            stacklevel=3,
        )
        return False
    return True


class Shape(NamedTuple):
    """What layers with the same work list have in common."""

    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype

    def tuning(self, block_size: int) -> dict[str, int]:
        """Return the kernel's constants and launch options: the most rows that spill nothing."""
        width = max(16, 1 << (self.dim - 1).bit_length())
        if self.dtype == torch.float32:
            rows, keys, warps, stages = SMALL_ROWS, 32, 4 if width <= 64 else 8, 2
        elif width <= 128:
            rows, keys, warps, stages = 64, 64, 4 if width <= 64 else 8, 3
        else:
            rows, keys, warps, stages = 32, 32, 8, 3
        constants = {"DIM": self.dim, "WIDTH": width, "BLOCK": block_size, "SMALL": SMALL_ROWS}
        constants |= {"LARGE": rows, "KEYS": keys}
        return {**constants, "num_warps": warps, "num_stages": stages}


class DevicePlan:
    """One step's batch on a device; its tensors keep their addresses while they are large enough.

    Example:
        plan = DevicePlan(pool.plan(seqs, queries), "cuda")
        tree_attention(q, k, v, k_cache, v_cache, plan, scale=0.125)
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device | str,
        *,
        positions: Tensor | None = None,
        fixed_launch: bool = False,
        **options: Any,
    ) -> None:
        """Work lists are packed when a layer first asks for them.

        Args:
            plan: from `BlockPool.plan`.
            device: where the kernel runs.
            positions: int64 [T], of every query; default: the plan's. T may exceed the plan's
                tokens: the rows behind them give 0.
            fixed_launch: start as many programs as run at once even if there is less work, so
                that a captured launch serves other plans.
            options: of `Plan.schedule`.
        """
        self.device = torch.device(device)
        self.fixed_launch = fixed_launch
        self.block_size = plan.block_size
        self.moves = 0
        """How often a tensor had to move; a captured graph is stale then."""
        self._plan, self._options = plan, options
        if positions is None:
            positions = torch.tensor(query_positions(plan), dtype=torch.int64, device=device)
        self.positions = positions
        self._lists: dict[Shape, WorkList] = {}

    @property
    def growth(self) -> int:
        """Tokens that every sequence may gain before `renew` is due."""
        return min((work.growth for work in self._lists.values()), default=0)

    def renew(self, plan: Plan) -> None:
        """Take another plan of the same block size."""
        assert plan.block_size == self.block_size
        self._plan = plan
        for shape, work in self._lists.items():
            self.moves += work.load(self._schedule(shape))

    def extend_tables(self, blocks: Tensor) -> None:
        """Enter the block of every query's position; of a plan with one query a sequence.

        `blocks` is int64 [T]; this runs on the device and may be captured.
        """
        column = (self.positions // self.block_size)[:, None]
        for work in self._lists.values():
            work.tables[: len(blocks)].scatter_(1, column, blocks[:, None].int())

    def work_list(self, shape: Shape) -> WorkList:
        """Return the list for layers of this shape."""
        if shape not in self._lists:
            schedule = self._schedule(shape)
            self._lists[shape] = WorkList(schedule, shape, len(self.positions), self.device)
            self.moves += 1
        return self._lists[shape]

    def _schedule(self, shape: Shape) -> Schedule:
        rows = {"small_rows": SMALL_ROWS, "large_rows": shape.tuning(self.block_size)["LARGE"]}
        options = {"tokens": len(self.positions), **rows, **self._options}
        return self._plan.schedule(shape.heads // shape.kv_heads, **options)


class WorkList:
    """The words of a schedule on the device and room for the partial results it makes."""

    def __init__(self, schedule: Schedule, shape: Shape, tokens: int, device: torch.device) -> None:
        self._heads, self._dim = shape.heads, shape.dim
        self._device = device
        self.counters = torch.zeros(tokens * self._heads, dtype=torch.int32, device=device)
        self.words = torch.empty(0, dtype=torch.int32, device=device)
        self.partial = self.stats = torch.empty(0, device=device)
        self.load(schedule)

    def load(self, schedule: Schedule) -> bool:
        """Copy the schedule to the device; return whether a tensor had to grow, and so to move."""
        words = torch.frombuffer(schedule, dtype=torch.int32)
        moved = False
        # what grows once grows again
        room = 2 if len(self.words) else 1
        if len(words) > len(self.words):
            self.words = words.new_empty(room * len(words), device=self._device)
            moved = True
        rows = schedule.num_slots * self._heads
        if rows * self._dim > len(self.partial):
            self.partial = torch.empty(room * rows * self._dim, device=self._device)
            self.stats = torch.empty(room * rows * 2, device=self._device)
            moved = True
        pinned = words.pin_memory() if self._device.type == "cuda" else words
        self.words[: len(words)].copy_(pinned, non_blocking=True)
        self.num_items, self.growth = schedule.num_items, schedule.growth
        rows, width = schedule.table_rows, schedule.table_width
        self.tables = self.words[TABLES : TABLES + rows * width].view(rows, width)
        return moved


def query_positions(plan: Plan) -> list[int]:
    """Return the position of every query token of `plan`."""
    starts = plan.query_offsets
    return [
        position
        for s, length in enumerate(plan.lengths)
        for position in range(length - starts[s + 1] + starts[s], length)
    ]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: DevicePlan,
    *,
    scale: float,
    window: int,
    softcap: float,
    out: Tensor,
) -> Tensor:
    """Launch the kernel; arguments as in `tree_attention`, checked."""
    from spark_kernels.tree_attention.triton import tree_attention_kernel

    shape = Shape(q.shape[1], k.shape[1], k.shape[2], q.dtype)
    work, tuning = plan.work_list(shape), shape.tuning(plan.block_size)
    most = most_programs(plan.device, tuning["num_warps"])
    programs = most if plan.fixed_launch else min(work.num_items * shape.kv_heads, most)
    if not programs:
        return out
    launch: Any = tree_attention_kernel[(programs,)]
    with on(q.device):
        launch(
            *(q, k, v, k_cache, v_cache, out),
            *(work.words, plan.positions, work.partial, work.stats, work.counters),
            *(shape.kv_heads, shape.heads // shape.kv_heads, scale),
            *(stride for tensor in (q, k, v, out) for stride in tensor.stride()[:2]),
            WINDOW=window,
            SOFTCAP=softcap,
            **tuning,
        )
    return out


@functools.cache
def most_programs(device: torch.device, warps: int) -> int:
    """Return how many programs run at the same time: registers allow 8 warps a multiprocessor."""
    if device.type != "cuda":
        # the interpreter runs them one after the other
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count * 8 // warps
