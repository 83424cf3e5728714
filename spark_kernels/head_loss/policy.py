"""The policy objective, a loss that a kernel knows: one launch from logits to their gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spark_kernels.head_loss.rows import Limits, Scaling, Statistics


@dataclass(kw_only=True)
class PolicyLoss:
    """The clipped objective with a KL term and a bonus for entropy; tensors are float32 [N].

    With r = e^(logprob - old) and d = reference - logprob it is the sum over the N tokens of

        -gain min(r, 1 + clip_high) - cost max(r, 1 - clip_low) + kl (e^d - d - 1) - bonus entropy

    PPO's min(r A, clip(r) A) is A min(r, 1 + clip_high) for A > 0 and A max(r, 1 - clip_low) for
    A < 0, so any number of terms of one token are two sums of weight * advantage.

    Example:
        PolicyLoss(old=old, gain=advantage.clamp(min=0), cost=advantage.clamp(max=0))
    """

    old: Tensor
    """Log-probability when the tokens were sampled."""
    gain: Tensor
    """>= 0, what a token earned."""
    cost: Tensor
    """<= 0, what it is blamed for."""
    reference: Tensor | None = None
    """Log-probability under a frozen policy."""
    kl: Tensor | None = None
    """Weight of the divergence from it."""
    bonus: Tensor | None = None
    """Weight of the entropy."""
    clip_low: float = 0.2
    clip_high: float = 0.2

    def __call__(self, logprob: Tensor, entropy: Tensor, part: slice) -> Tensor:
        """Return the share of the tokens in `part`; differentiable."""
        return self.share(self.columns(part).to(logprob), logprob, entropy)

    def columns(self, part: slice) -> Tensor:
        """Return [6, C]: old, gain, cost, reference, kl and bonus of the tokens in `part`."""
        old, nothing = self.old, torch.zeros_like(self.old)
        optional = (old if self.reference is None else self.reference, self.kl, self.bonus)
        every = (old, self.gain, self.cost, *(nothing if x is None else x for x in optional))
        return torch.stack([column[part] for column in every])

    def share(self, columns: Tensor, logprob: Tensor, entropy: Tensor) -> Tensor:
        """Return the sum over the tokens of `columns`."""
        old, gain, cost, reference, kl, bonus = columns
        ratio = (logprob - old).exp()
        # a token without KL may be as far from the reference as it likes
        far = torch.where(kl == 0, 0.0, reference - logprob)
        clipped = gain * ratio.clamp(max=1 + self.clip_high) + cost * ratio.clamp(
            min=1 - self.clip_low
        )
        return (kl * (far.exp() - far - 1) - clipped - bonus * entropy).sum()


def overwrite_(
    logits: Tensor,
    tokens: Tensor,
    scaling: Scaling,
    limits: Limits | None,
    loss: PolicyLoss,
    part: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite `logits` [C, V] by the gradient of `loss`; return (loss, logprob, entropy).

    One Triton launch for rows over the whole vocabulary. Limited rows have few tokens: they are
    gathered before it and put back after it.
    """
    from spark_kernels.head_loss.launch import launch_policy

    columns = loss.columns(part).to(logits.device, torch.float32)

    def launch(columns: Tensor) -> tuple[Tensor, ...]:
        how = (scaling.inverse, scaling.softcap, columns, loss.clip_low, loss.clip_high)
        return launch_policy(logits, tokens, *how)

    if limits is None:
        value, logprob, entropy = launch(columns)
        return value.sum(), logprob, entropy
    limited = limits.limited
    # log-probability and entropy 0 where no limits are
    zeros = torch.zeros_like(columns[0])
    blank = Statistics(zeros, torch.ones_like(zeros), zeros, zeros)
    stats = limits.statistics(logits, tokens, scaling, blank)
    own = columns * limited
    value, derivatives = differentiate(lambda *scores: loss.share(own, *scores), stats)
    few = limits.gradient(logits, tokens, scaling, stats, *derivatives)
    rest, logprob, entropy = launch(columns * ~limited)
    limits.put_(logits, few)
    return (
        value + rest.sum(),
        stats.logprob.where(limited, logprob),
        stats.entropy.where(limited, entropy),
    )


def differentiate(
    loss: Callable[[Tensor, Tensor], Tensor], stats: Statistics
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a chunk and its derivatives by log-probability and entropy."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (stats.logprob, stats.entropy)]
        value = loss(*inputs)
        if not value.requires_grad:
            return value, [torch.zeros_like(x) for x in inputs]
        found = torch.autograd.grad(value, inputs, allow_unused=True)
    pairs = zip(found, inputs, strict=True)
    # the derivative of a sum is one number, expanded: the kernels read a number a row
    return value.detach(), [torch.zeros_like(x) if g is None else g.contiguous() for g, x in pairs]
