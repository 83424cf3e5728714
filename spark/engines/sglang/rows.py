"""What the sampler must know of each row beyond SGLang's own sampling tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from spark.engines.sglang.choices import pack
from spark.engines.sglang.hooks import Hook
from spark.engines.sglang.penalties import replay
from spark.seeds import derive_seed
from spark_kernels.score import Scores

# every rank forms the same batches in the same order, so that this counts alike on all of them
_UNSEEDED = count()


@dataclass(slots=True)
class Rows:
    """One entry a row of a batch."""

    seeds: Tensor
    """int64 [B]; with the position it fixes the draw."""
    wanted: list[bool]
    """Whether the request asked for its scores."""
    grammar: Any = None
    """SGLang's grammar mask of this step, where `allowed` can be made of it."""
    scores: Scores | None = None
    """What `score` said in this step."""

    @property
    def allowed(self) -> Tensor | None:
        """int32 [B, ceil(V / 32)]: the grammar's bitmask of this step."""
        if self.grammar is None:
            return None
        mask: Tensor = self.grammar.vocab_mask
        # outlines marks what is forbidden
        return pack(~mask) if mask.dtype == torch.bool else mask

    @classmethod
    def of(cls, reqs: list[Any], device: Any) -> Rows:
        """Return the rows of freshly batched requests."""
        wanted = [req.spark is not None and req.spark.score for req in reqs]
        seeds = torch.tensor([_seed(req) for req in reqs], dtype=torch.int64)
        return cls(seeds.to(device, non_blocking=True), wanted)


def _seed(req: Any) -> int:
    """Return the request's own seed, else one that no other request of this server gets."""
    if not hasattr(req, "spark_seed"):
        given = req.sampling_params.sampling_seed
        if given is None:
            # replicas begin with the same generator, and count the same
            replica = getattr(req, "spark_replica", 0)
            given = derive_seed("sglang", torch.initial_seed(), replica, next(_UNSEEDED))
        req.spark_seed = given
    return req.spark_seed


def on_batch(result: None, info: Any, batch: Any, *_: Any) -> None:
    """A batch of requests got its sampling tensors."""
    info.spark = Rows.of(batch.reqs, batch.device)
    replay(info.penalizer_orchestrator, batch)


def on_filter(result: None, info: Any, keep: list[int], keep_device: Tensor) -> None:
    """Rows left the batch."""
    rows = getattr(info, "spark", None)
    if rows is not None:
        info.spark = Rows(rows.seeds[keep_device], [rows.wanted[i] for i in keep])


def on_merge(result: None, info: Any, other: Any) -> None:
    """The rows of another batch follow."""
    ours, theirs = getattr(info, "spark", None), getattr(other, "spark", None)
    if ours is not None and theirs is not None:
        info.spark = Rows(torch.cat([ours.seeds, theirs.seeds]), ours.wanted + theirs.wanted)
    else:
        info.spark = None


def on_copy(result: Any, info: Any) -> None:
    """The tensors were copied for one forward pass."""
    rows = getattr(info, "spark", None)
    result.spark = None if rows is None else replace(rows)


BATCH = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"


def hooks() -> list[Hook]:
    """Return the hooks that carry `Rows` along with SGLang's sampling tensors."""
    found: list[tuple[str, Callable[..., Any]]] = [
        ("adjusted_from_schedule_batch", on_batch),
        ("adjusted_filter_batch", on_filter),
        ("adjusted_merge_batch", on_merge),
        ("copy_for_forward", on_copy),
    ]
    return [Hook(f"{BATCH}.{name}", "after", function) for name, function in found]
