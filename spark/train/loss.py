"""The clipped policy objective with a low-variance KL term and truncated importance sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from spark.train.config import LossConfig
from spark.train.pack import Row


def policy_loss(
    logprobs: Tensor, old: Tensor, reference: Tensor | None, row: Row, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed loss of a row, and what to log (sums over its N trained tokens).

    It is a sum over tokens, so the loss of a row is that of its parts (`Row.part`) added up.

    Args:
        logprobs: [N], of the policy being trained.
        old: [N], of the same network when the trees were sampled.
        reference: [N], of the frozen reference; None = no KL term.
        row: the packed row.
        config: constants.

    The caller divides by the sum of the weights of everything in the step.
    """
    row = row.to(logprobs.device)
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    correction = (old - row.behaviour).exp().clamp(max=config.importance_cap)
    term = row.term_target
    gain = torch.minimum(ratio[term] * row.advantage, clipped[term] * row.advantage)
    loss = -(row.weight * correction[term] * gain).sum()
    logs = {
        "tokens": torch.tensor(float(len(logprobs))),
        "clipped": (ratio != clipped).sum(),
        "mismatch": (old - row.behaviour).abs().sum(),
    }
    if reference is not None:
        kl = low_variance_kl(logprobs, reference)
        loss = loss + config.kl * (row.weight * kl[term]).sum()
        logs["kl"] = kl.sum()
    return loss, {name: value.detach() for name, value in logs.items()}


def low_variance_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate exp(d) - d - 1 with d = reference - logprobs: unbiased and >= 0."""
    difference = reference - logprobs
    return difference.exp() - difference - 1
