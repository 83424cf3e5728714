"""What `head_loss` does, in plain torch and with torch's own gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def head_loss_reference(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    tokens: Tensor,
    loss: Callable[[Tensor, Tensor, slice], Tensor] | None = None,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float = 0.0,
    allowed: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, logprob [N], entropy [N]); arguments as in `head_loss`."""
    logits = hidden[rows] @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].to(logits.dtype)
    logits = logits / temperature
    if allowed is not None:
        row, token = allowed
        limited = torch.zeros(len(tokens), dtype=torch.bool, device=row.device)
        limited = limited.index_fill(0, row, True)
        keep = ~limited[:, None].expand_as(logits).clone()
        keep[row, token] = True
        logits = logits.masked_fill(~keep, -torch.inf)
    logs = logits.log_softmax(-1)
    logprob = logs.gather(1, tokens[:, None])[:, 0]
    # 0 * -inf has no gradient
    entropy = -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1)
    value = logits.new_zeros(()) if loss is None else loss(logprob, entropy, slice(0, len(tokens)))
    return value, logprob, entropy
