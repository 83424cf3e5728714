"""The public `score`: checks nothing on the way in, explains everything when the kernel refuses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spark_kernels import _load
from spark_kernels.score.check import check
from spark_kernels.score.reference import reference

# devices with a compiled kernel; found once, so that torch.compile sees a constant
COMPILED = frozenset(device for device in ("cpu", "cuda") if _load.has("score", device))


class Scores(NamedTuple):
    """What one call of `score` says about each row; all in nats, all of shape [B].

    tokens: int64, the sampled (or given) token; -1 where the row is invalid.
    logprob: float32, log p_T(token) of the full tempered distribution, before any truncation.
    log_kept_mass: float32, log of the p_T-mass that mask and truncation keep; the token was drawn
        with log-probability logprob - log_kept_mass.
    entropy, varentropy: float32, mean and variance of -log p at temperature 1, full vocabulary.
    entropy_tempered, varentropy_tempered: the same of p_T, or None when not asked for.

    Example:
        Scores(tensor([2]), tensor([-0.41]), tensor([0.]), tensor([0.83]), tensor([0.61]), None,
               None)
    """

    tokens: Tensor
    logprob: Tensor
    log_kept_mass: Tensor
    entropy: Tensor
    varentropy: Tensor
    entropy_tempered: Tensor | None = None
    varentropy_tempered: Tensor | None = None


def score(
    logits: Tensor,
    *,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    allowed: Tensor | None = None,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    tokens: Tensor | None = None,
    tempered_entropy: bool = False,
    out: Scores | None = None,
) -> Scores:
    """Sample (or take) one token per row and score it, reading the logits once.

    Args:
        logits: [B, V], float32, bfloat16 or float16, V < 2**20, unit stride along V; the row
            stride may exceed V.
        temperature: float32 [B], 0 = greedy (top-k 1 at temperature 1). None = 1.
        top_k: int32 [B], 0 = off. top_p: float32 [B] in (0, 1], 1 = off. min_p: float32 [B] in
            [0, 1], relative to the most likely token, 0 = off. They are judged on the tempered
            distribution over the allowed tokens, top-p on what top-k left of it; ties go to the
            lowest index.
        allowed: int32 [B, ceil(V / 32)], bit v % 32 of word v // 32 set = token v is allowed.
        seed, position: int64 [B]; together they fix the draw of a row, whatever its batch. Without
            a seed one is drawn from torch's default generator; without a position it is 0.
        tokens: int64 [B], the token to score, or -1 to sample. None = sample all.
        tempered_entropy: also return entropy and varentropy of the tempered distribution.
        out: the result of an earlier call with the same B, overwritten and returned.

    A row that holds a NaN or +inf, or nothing allowed, gives token -1 and NaN scores; the other
    rows are unaffected.

    Raises:
        ValueError: a wrong shape, dtype or value; the message names the field and the remedy. On
            CUDA values are not looked at, so that the host does not wait: a row with one out of
            range gives token -1 and NaN scores.
    """
    if seed is None:
        seed = torch.randint(2**63 - 1, logits.shape[:1], device=logits.device)
    inputs = (
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        allowed,
        seed,
        position,
        tokens,
    )
    if logits.device.type not in COMPILED:
        check(*inputs, out=out)
        return _copied(Scores(*reference(*inputs, tempered_entropy)), out)
    if out is None:
        out = _allocate(logits, tempered_entropy)
    try:
        torch.ops.spark.score(*inputs, *out)
    except RuntimeError:
        check(*inputs, out=out)
        raise
    return out


def _allocate(logits: Tensor, tempered_entropy: bool) -> Scores:
    rows, device = logits.shape[0], logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    floats = torch.empty((6 if tempered_entropy else 4, rows), dtype=torch.float32, device=device)
    return Scores(tokens, *floats.unbind())


def _copied(scores: Scores, out: Scores | None) -> Scores:
    if out is None:
        return scores
    for target, value in zip(out, scores, strict=True):
        if target is not None and value is not None:
            target.copy_(value)
    return out


def _fake(*_: Tensor | None) -> None:
    """Infer nothing: every output is an argument."""


if COMPILED:
    torch.library.register_fake("spark::score", _fake)
