"""Penalties of tree members: what they count depends on the place in the output alone.

With overlapped scheduling SGLang prepares a step before the previous token is known, and counts
"the last token known" instead: the one before, or whatever the traffic of other requests made it.
A fork would not repeat that. For members the steady state is made the rule: the token at place j
is penalised for the prompt's last token and the output up to place j - 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spark.engines.sglang.hooks import Hook


def counted(req: Any, count: int, overlap: bool) -> list[int]:
    """Return the first `count` tokens that the penalties of `req` count, in order."""
    if overlap:
        return [req.origin_input_ids[-1], *req.output_ids[: count - 1]] if count else []
    return list(req.output_ids[:count])


def replay(orchestrator: Any, batch: Any) -> None:
    """Count the output that forks, and retracted members, start with.

    A penalizer is applied to one row at a time through views of its tensors: they are updated in
    place, and none is known by name here.
    """
    for penalizer in orchestrator.penalizers.values():
        if not penalizer.is_prepared():
            continue
        for row, req in enumerate(batch.reqs):
            if req.spark is not None and len(req.output_ids):
                view = _view(penalizer, row, len(batch.reqs))
                for token in counted(req, len(req.output_ids), batch.enable_overlap):
                    view._cumulate_output_tokens(torch.tensor([token], device=batch.device))


def on_cumulate(original: Callable[[Any], None], batch: Any) -> None:
    """A decode step is prepared: each row's penalties count one more token."""
    if all(req.spark is None for req in batch.reqs):
        return original(batch)
    tokens = []
    for req in batch.reqs:
        if req.spark is None:
            # as SGLang does
            tokens.append((req.output_ids or req.origin_input_ids)[-1])
        else:
            launched = req.kv.kv_committed_len + 1 - len(req.origin_input_ids)
            tokens.append(counted(req, launched, batch.enable_overlap)[-1])
    ids = torch.tensor(tokens, dtype=torch.int64).to(batch.device, non_blocking=True)
    batch.sampling_info.penalizer_orchestrator.cumulate_output_tokens(ids)


def _view(penalizer: Any, row: int, rows: int) -> Any:
    view = object.__new__(type(penalizer))
    for name, value in vars(penalizer).items():
        per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        setattr(view, name, value[row : row + 1] if per_row else value)
    return view


HOOK = Hook(
    "sglang.srt.managers.schedule_batch.ScheduleBatch.cumulate_penalty_output_tokens",
    "around",
    on_cumulate,
)
