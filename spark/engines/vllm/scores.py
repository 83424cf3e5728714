"""The way of the scores: extra columns of vLLM's logprobs on the way to the host, then lists.

worker: `append` -> scheduler: `take`, `attach` -> front end: `detach`. It adds no transfer and no
synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spark.engines.vllm.branch import KEY

COLUMNS = 3
SENTINEL = -7
"""Token id of the extra columns."""
UNKNOWN = (float("nan"),) * COLUMNS


@dataclass(kw_only=True, slots=True)
class TokenScores:
    """Scores of consecutive sampled tokens, in nats; lists of equal length.

    Example:
        TokenScores(logprobs=[-0.4], entropies=[0.8], log_kept_mass=[0.0], fork_path="exact",
                    recomputed=1)
    """

    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    log_kept_mass: list[float] = field(default_factory=list)
    fork_path: str | None = None
    """exact, cache or recompute; None where nothing was forked or it has been told before."""
    recomputed: int = 0
    """Tokens of the shared prefix that were computed again."""

    def add(self, row: Sequence[float] | None, path: tuple[str, int] | None) -> None:
        """Append the scores of one token, in the order of the fields; None = they are not known."""
        logprob, entropy, kept = row or UNKNOWN
        self.logprobs.append(logprob)
        self.entropies.append(entropy)
        self.log_kept_mass.append(kept)
        if path is not None:
            self.fork_path = path[0]
            self.recomputed += path[1]

    def extend(self, other: TokenScores) -> None:
        """Append what was said about the tokens that follow."""
        self.logprobs += other.logprobs
        self.entropies += other.entropies
        self.log_kept_mass += other.log_kept_mass
        self.fork_path = other.fork_path or self.fork_path
        self.recomputed += other.recomputed


def append(tensors: Any, logprob: Tensor, entropy: Tensor, log_kept_mass: Tensor) -> Any:
    """Return vLLM's LogprobsTensors (or None) with three columns more, one row a request."""
    from vllm.v1.outputs import LogprobsTensors

    columns = torch.stack((logprob, entropy, log_kept_mass), dim=1)
    ids = torch.full_like(columns, SENTINEL, dtype=torch.int32)
    if tensors is None:
        ranks = torch.zeros(len(columns), dtype=torch.int32, device=columns.device)
        return LogprobsTensors(ids, columns, ranks)
    values = torch.cat((tensors.logprobs, columns.to(tensors.logprobs.dtype)), dim=1)
    known = tensors.logprob_token_ids
    if known.dim() == 2:
        known = torch.cat((known, ids.to(known.dtype)), dim=1)
    # of the whole vocabulary vLLM sends no ids
    return tensors._replace(logprob_token_ids=known, logprobs=values)


def take(output: Any, vocab_size: int) -> Any:
    """Remove the columns from a ModelRunnerOutput; return float [rows, 3] or None."""
    lists = output.logprobs
    if lists is None:
        return None
    ids, values = lists.logprob_token_ids, lists.logprobs
    if ids.ndim == 2:
        if ids.shape[1] < COLUMNS or not len(ids) or ids[0, -1] != SENTINEL:
            return None
        ids = ids[:, :-COLUMNS]
    elif values.shape[-1] != vocab_size + COLUMNS:
        return None
    left = values[:, :-COLUMNS]
    # nobody else asked for logprobs: there is nothing but our columns
    output.logprobs = (
        lists._replace(logprob_token_ids=ids, logprobs=left) if left.shape[1] else None
    )
    return values[:, -COLUMNS:]


def attach(output: Any, row: list[float] | None, path: tuple[str, int] | None) -> None:
    """Let an EngineCoreOutput of one new token carry its scores to the front end."""
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: (row, path)}


def detach(output: Any) -> tuple[list[float] | None, tuple[str, int] | None] | None:
    """Take what `attach` has put on an EngineCoreOutput; None where it has none."""
    carried = output.kv_transfer_params
    if not carried or KEY not in carried:
        return None
    row, path = carried.pop(KEY)
    output.kv_transfer_params = carried or None
    return row, path
