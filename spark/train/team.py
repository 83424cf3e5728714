"""The processes that train one model together: torchrun or `accelerate launch` starts them.

Process 0 leads: it rolls out, evaluates and writes; the others get from it what they need.
"""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# the others wait while process 0 rolls out
PATIENCE = timedelta(days=1)
# what Gloo's threads get, in seconds, to let go of the last collective's tensors
LEAVE = 0.2


@dataclass(frozen=True)
class Team:
    """This process's place among all. The calls are made by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """A launcher started us, even if only one: weights are sharded over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this process rolls out and writes."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return what process 0 gave."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gave, by rank."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values


def launched() -> bool:
    """Return whether a launcher started this process."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def leave() -> None:
    """Leave the processes; Gloo's threads first let go of their tensors.

    Such a thread needs the GIL for it, and one that asks for the GIL after the interpreter has
    begun to end aborts the process. Asleep, we hold no GIL (no collective here: it would wait for
    a process that failed).
    """
    time.sleep(LEAVE)
    dist.destroy_process_group()


def join() -> Team:
    """Return our place among the processes that a launcher started; alone without one."""
    if not launched():
        return Team()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(timeout=PATIENCE)
        atexit.register(leave)
    return Team(dist.get_rank(), dist.get_world_size(), sharded=True)
