"""The definition of `score`, in plain torch and fp64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spark_kernels.score.philox import uniform

INF = float("inf")


def reference(
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    allowed: Tensor | None = None,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    tokens: Tensor | None = None,
    tempered_entropy: bool = False,
) -> tuple[Any, ...]:
    """Return the fields of `Scores`; arguments as in `score`, a missing seed counts as 0."""
    x, rows, vocab = logits.double(), *logits.shape
    zero = x.new_zeros(rows, 1)
    heat = zero + 1 if temperature is None else temperature.double()[:, None]
    k = zero if top_k is None else top_k[:, None]
    k = torch.where(heat == 0, 1, torch.where(k == 0, vocab, k))
    full = torch.log_softmax(x / torch.where(heat == 0, 1, heat), -1)
    usable = (x > -INF) if allowed is None else (x > -INF) & unpack(allowed, vocab)

    ranked, order = full.masked_fill(~usable, -INF).sort(dim=-1, descending=True, stable=True)
    keep = (torch.arange(vocab, device=x.device) < k) & (ranked > -INF)
    mass = ranked.masked_fill(~keep, -INF).softmax(-1)
    if top_p is not None:
        keep &= (mass.cumsum(-1) - mass < top_p.double()[:, None]) | (top_p[:, None] >= 1)
    if min_p is not None:
        keep &= ranked - ranked[:, :1] >= min_p.double()[:, None].log()
    kept = full.masked_fill(~keep.scatter(-1, order, keep), -INF)

    cdf = (kept - kept.amax(-1, keepdim=True)).exp().cumsum(-1)
    seed, position = (zero[:, 0].long() if v is None else v for v in (seed, position))
    drawn = (cdf <= uniform(seed, position)[:, None] * cdf[:, -1:]).sum(-1)
    token = drawn if tokens is None else torch.where(tokens < 0, drawn, tokens)
    bad = ~usable.any(-1) | ~(x < INF).all(-1)
    token = token.clamp(0, vocab - 1)
    entropies = [*moments(torch.log_softmax(x, -1)), *(moments(full) if tempered_entropy else ())]
    values = [full.gather(-1, token[:, None])[:, 0], kept.logsumexp(-1), *entropies]
    values = [value.masked_fill(bad, float("nan")).float() for value in values]
    return token.masked_fill(bad, -1), *values, *([None] * (6 - len(values)))


def moments(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Return entropy and varentropy of log-probabilities [B, V]."""
    p, surprise = logp.exp(), -logp.masked_fill(logp == -INF, 0)
    entropy = (p * surprise).sum(-1, keepdim=True)
    return entropy[:, 0], (p * (surprise - entropy) ** 2).sum(-1)


def unpack(allowed: Tensor, vocab: int) -> Tensor:
    """Return the bitmask int32 [B, ceil(V / 32)] as bool [B, V]."""
    bits = torch.arange(32, device=allowed.device, dtype=torch.int32)
    return ((allowed[:, :, None] >> bits) & 1).flatten(1)[:, :vocab].bool()
