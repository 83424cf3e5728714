"""The public `head_loss`: a loop over chunks whose gradients are made in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from spark_kernels.head_loss import shards
from spark_kernels.head_loss.policy import PolicyLoss, differentiate, overwrite_
from spark_kernels.head_loss.rows import Limits, Scaling, fused, gradient_, statistics

CHUNK = 4096
"""Rows whose logits exist at the same time."""

Loss = Callable[[Tensor, Tensor, slice], Tensor]
"""(logprob [C], entropy [C], which of the N rows) -> their share of the loss; differentiable."""


class HeadLoss(NamedTuple):
    """loss: float32 scalar, differentiable. logprob, entropy: float32 [N], detached, in nats.

    Example:
        HeadLoss(tensor(1.2, grad_fn=...), tensor([-0.4, -2.0]), tensor([0.9, 1.1]))
    """

    loss: Tensor
    logprob: Tensor
    entropy: Tensor


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    tokens: Tensor,
    loss: Loss | None = None,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float = 0.0,
    allowed: tuple[Tensor, Tensor] | None = None,
    group: ProcessGroup | None = None,
    chunk: int = CHUNK,
) -> HeadLoss:
    """Score `tokens` under the LM head, and evaluate a loss of the scores with its gradients.

    Logits exist for `chunk` rows at a time and are overwritten by their gradient; nothing is
    computed twice. Under autocast the products are made in its dtype. The gradient of the weight is
    summed in float32. A hidden state that no row names costs nothing.

    Args:
        hidden: [T, H], final hidden states.
        weight: [V, H] of the LM head; with `group` this process's equal share of the vocabulary.
        rows: int64 [N], index into `hidden` of the state that predicts each token; may repeat.
        tokens: int64 [N], in the whole vocabulary.
        loss: called once a chunk, in order; it may differentiate through both arguments. A
            `PolicyLoss` is evaluated by the kernel that makes the gradient, where there is one.
            None = scores only, and `loss` is 0.
        temperature: > 0, one or float32 [N]; divides the logits.
        softcap: logits become softcap * tanh(logits / softcap) first; 0 = off.
        allowed: (row, token), int64 [K] by ascending row: rows that are named are normalised over
            their tokens only. On the CPU, where the loss's rows are cut.
        group: processes that share the vocabulary; rank r holds rows [r V, (r + 1) V) of the head.
            Every process gets the same loss and the whole gradient of `hidden`.
        chunk: rows at a time.

    Raises:
        ValueError: shapes or values do not fit; the message names the argument.
        RuntimeError: in a second backward of one result.
    """
    _check(hidden, weight, rows, tokens, temperature, softcap, allowed, chunk)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
    # a precision to fall back on for what is summed
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inverse = torch.as_tensor(temperature, dtype=wide, device=hidden.device).reciprocal()
    work = _Work(
        rows=rows.to(hidden.device),
        tokens=tokens.to(hidden.device).contiguous(),
        loss=loss,
        inverse=inverse.expand(len(rows)).contiguous(),
        softcap=softcap,
        allowed=allowed,
        group=group,
        chunk=chunk,
        dtype=dtype,
        wide=wide,
    )
    # the products are in `dtype` already and the rest is wider
    with torch.autocast(device, enabled=False):
        return HeadLoss(*cast(tuple[Tensor, ...], _HeadLoss.apply(hidden, weight, work)))


@dataclass
class _Work:
    """The arguments that take no gradient."""

    rows: Tensor
    tokens: Tensor
    loss: Loss | None
    inverse: Tensor
    softcap: float
    allowed: tuple[Tensor, Tensor] | None
    group: ProcessGroup | None
    chunk: int
    dtype: torch.dtype
    wide: torch.dtype

    def chunks(self) -> Iterator[slice]:
        """Yield the rows of each chunk."""
        for first in range(0, len(self.rows), self.chunk):
            yield slice(first, min(first + self.chunk, len(self.rows)))

    def one_launch(self, logits: Tensor, overwrite: bool) -> bool:
        """Return whether a policy loss of `logits` and its gradient can be one kernel."""
        known = fused(logits.device) and logits.dtype != torch.float64
        return overwrite and self.group is None and known

    def limits(self, part: slice, first: int, vocab: int) -> Limits | None:
        """Return the limited rows of a chunk over the vocabulary [first, first + vocab)."""
        if self.allowed is None:
            return None
        row, token = self.allowed
        edges = torch.searchsorted(row, torch.tensor([part.start, part.stop], device=row.device))
        low, high = edges.tolist()
        if low == high:
            return None
        row, token = row[low:high] - part.start, token[low:high] - first
        limited = torch.zeros(part.stop - part.start, dtype=torch.bool, device=row.device)
        limited[row] = True
        here = (token >= 0) & (token < vocab)
        where = self.rows.device
        return Limits(row[here].to(where), token[here].to(where), limited.to(where))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, work: _Work) -> tuple[Tensor, ...]:
        states, head = hidden.to(work.dtype), weight.to(work.dtype)
        wanted = [work.loss is not None and need for need in ctx.needs_input_grad[:2]]
        by_hidden = torch.zeros_like(states, dtype=work.wide) if wanted[0] else None
        by_weight = torch.zeros_like(head, dtype=work.wide) if wanted[1] else None
        scores = states.new_empty((2, len(work.rows)), dtype=work.wide)
        total = scores.new_zeros(())
        first = shards.first_token(len(head), work.group)
        for part in work.chunks():
            index, tokens = work.rows[part], work.tokens[part] - first
            scaling = Scaling(work.inverse[part], work.softcap)
            limits = work.limits(part, first, len(head))
            inputs = states[index]
            logits = inputs @ head.T
            where = (logits, tokens, scaling, limits)
            if isinstance(work.loss, PolicyLoss) and work.one_launch(logits, any(wanted)):
                value, *found = overwrite_(*where, work.loss, part)
            else:
                value, *found = _in_steps(*where, work, part, any(wanted))
            scores[0, part], scores[1, part] = found
            total += value
            if not any(wanted):
                continue
            if by_hidden is not None:
                by_hidden.index_add_(0, index, (logits @ head).to(work.wide))
            if by_weight is not None:
                _add_product(by_weight, logits, inputs)
        if by_hidden is not None:
            shards.add_up(by_hidden, work.group)
        ctx.gradients = by_hidden, by_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        logprob, entropy = scores.unbind()
        ctx.mark_non_differentiable(logprob, entropy)
        return total, logprob, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("head_loss keeps its gradients for one backward: call it again")
        # scaled in place, as large as the head; torch wants the dtype of what they belong to
        gradients = [
            None if g is None else g.mul_(by_loss).to(dtype)
            for g, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*gradients, None)


def _in_steps(
    logits: Tensor,
    tokens: Tensor,
    scaling: Scaling,
    limits: Limits | None,
    work: _Work,
    part: slice,
    overwrite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, logprob [C], entropy [C]) of a chunk; `overwrite` logits by their gradient."""
    stats = statistics(logits, tokens, scaling)
    if limits is not None:
        stats = limits.statistics(logits, tokens, scaling, stats)
    stats = shards.merge(stats, work.group)
    loss = work.loss
    if loss is None:
        return stats.total.new_zeros(()), stats.logprob, stats.entropy
    value, derivatives = differentiate(lambda logprob, entropy: loss(logprob, entropy, part), stats)
    if overwrite:
        change = gradient_ if limits is None else limits.gradient_
        change(logits, tokens, scaling, stats, *derivatives)
    return value, stats.logprob, stats.entropy


def _add_product(target: Tensor, logits: Tensor, inputs: Tensor) -> None:
    """Add logits^T @ inputs to `target`, whose dtype is the wider one."""
    if logits.dtype == target.dtype:
        target.addmm_(logits.T, inputs)
    elif target.device.type == "cuda":
        torch.addmm(target, logits.T, inputs, out_dtype=target.dtype, out=target)
    else:
        # rounded once a chunk: torch has no mixed product on the CPU
        target += logits.T @ inputs


def _check(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    tokens: Tensor,
    temperature: float | Tensor,
    softcap: float,
    allowed: tuple[Tensor, Tensor] | None,
    chunk: int,
) -> None:
    count = len(rows)
    shape = tuple(temperature.shape) if isinstance(temperature, Tensor) else ()
    rules = {
        f"hidden must be [T, H], got {list(hidden.shape)}": hidden.dim() == 2,
        f"weight must be [V, {hidden.shape[-1]}], got {list(weight.shape)}": (
            weight.dim() == 2 and weight.shape[1] == hidden.shape[-1]
        ),
        "rows must be int64 [N]": rows.dim() == 1 and rows.dtype == torch.int64,
        f"tokens must be int64 [{count}], as rows": (
            tokens.shape == rows.shape and tokens.dtype == torch.int64
        ),
        f"temperature must be one number or [{count}], got {list(shape)}": shape in ((), (count,)),
        f"softcap must be >= 0, got {softcap}": softcap >= 0,
        f"chunk must be >= 1, got {chunk}": chunk >= 1,
        "allowed must be two int64 tensors of one length": allowed is None
        or (allowed[0].shape == allowed[1].shape and allowed[0].dtype == torch.int64),
    }
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)
    # a tensor's values stay on their device
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
