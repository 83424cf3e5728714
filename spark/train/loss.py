"""The clipped policy objective with a low-variance KL term and truncated importance sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from spark.train.config import LossConfig
from spark.train.pack import Row
from spark_kernels import PolicyLoss


def policy_loss(
    old: Tensor, reference: Tensor | None, row: Row, config: LossConfig, total: float = 1.0
) -> PolicyLoss:
    """Return the loss of a row, a sum over its N trained tokens.

    Args:
        old: [N], log-probabilities of the same network when the trees were sampled.
        reference: [N], of the frozen reference; None = no KL term.
        row: the packed row.
        config: constants.
        total: the sum of the weights of everything in the step, by which the loss is divided.
    """
    row = row.to(old.device)
    correction = (old - row.behaviour).exp().clamp(max=config.importance_cap)
    term = row.term_target
    weight = row.weight.to(old) / total
    earned = weight * correction[term] * row.advantage
    nothing = torch.zeros_like(old)

    def per_token(values: Tensor) -> Tensor:
        return nothing.index_add(0, term, values)

    weights = per_token(weight)
    return PolicyLoss(
        old=old,
        gain=per_token(earned.clamp(min=0)),
        cost=per_token(earned.clamp(max=0)),
        reference=reference,
        kl=None if reference is None else config.kl * weights,
        bonus=config.entropy * weights if config.entropy else None,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )


def policy_logs(
    logprobs: Tensor, old: Tensor, reference: Tensor | None, row: Row, config: LossConfig
) -> dict[str, Tensor]:
    """Return what to log of a row, sums over its N trained tokens.

    Args:
        logprobs: [N], of the policy being trained, without a graph.
        old, reference, row, config: as above.
    """
    ratio = (logprobs - old).exp()
    clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    logs = {
        "tokens": torch.tensor(float(len(logprobs))),
        "clipped": clipped.sum(),
        "mismatch": (old - row.behaviour.to(old)).abs().sum(),
    }
    if reference is not None:
        logs["kl"] = low_variance_kl(logprobs, reference).sum()
    return logs


def low_variance_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate exp(d) - d - 1 with d = reference - logprob: unbiased and >= 0."""
    difference = reference - logprobs
    return difference.exp() - difference - 1
