"""What processes tell each other when each holds a part of the vocabulary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from spark_kernels.head_loss.rows import Statistics


def first_token(vocab: int, group: ProcessGroup | None) -> int:
    """Return the first token of this process's share of `vocab` tokens."""
    return 0 if group is None else dist.get_rank(group) * vocab


def merge(stats: Statistics, group: ProcessGroup | None) -> Statistics:
    """Return the statistics over all parts of the vocabulary."""
    if group is None:
        return stats
    tops = torch.stack([stats.peak, stats.chosen])
    dist.all_reduce(tops, ReduceOp.MAX, group)
    peak, chosen = tops.unbind()
    # a part without an allowed token has peak -inf and total 0
    shift = (stats.peak - peak).where(stats.total > 0, 0.0)
    sums = torch.stack([stats.total, stats.moment + stats.total * shift]) * shift.exp()
    dist.all_reduce(sums, ReduceOp.SUM, group)
    return Statistics(peak, sums[0], sums[1], chosen)


def add_up(gradient: Tensor, group: ProcessGroup | None) -> None:
    """Sum `gradient` over the processes, in place."""
    if group is not None:
        dist.all_reduce(gradient, ReduceOp.SUM, group)
