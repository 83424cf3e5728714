"""Triton kernels of `head_loss`: one read for the row statistics, one pass for the gradient."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(x, inverse, SOFTCAP: tl.constexpr):
    """Return softcap * tanh(x / softcap) * inverse, or x * inverse."""
    if SOFTCAP > 0.0:
        # tanh(y) = 1 - 2 / (e^2y + 1)
        doubled = tl.exp2(x * (2.0 / SOFTCAP * LOG2_E))
        x = (1.0 - 2.0 / (doubled + 1.0)) * SOFTCAP
    return x * inverse


@triton.jit
def statistics_kernel(
    logits, tokens, inverses, peaks, totals, moments, chosens, vocab, stride,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce one row: each lane keeps its own running maximum, sum and first moment."""
    row = tl.program_id(0)
    inverse = tl.load(inverses + row)
    start = logits + row.to(tl.int64) * stride
    lane = tl.arange(0, BLOCK)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for base in tl.range(0, vocab, BLOCK):
        inside = base + lane < vocab
        x = tl.load(
            start + base + lane, mask=inside, other=float("-inf"), eviction_policy="evict_first"
        )
        x = tl.where(inside, _scores(x.to(tl.float32), inverse, SOFTCAP), float("-inf"))
        top = tl.maximum(peak, x)
        safe = tl.where(top == float("-inf"), 0.0, top)
        # a lane that has seen nothing finite must not subtract infinities
        shift = tl.where(peak == float("-inf"), 0.0, peak - safe)
        fall = tl.where(x == float("-inf"), 0.0, x - safe)
        old = tl.exp2(shift * LOG2_E)
        new = tl.where(x == float("-inf"), 0.0, tl.exp2(fall * LOG2_E))
        moment = (moment + total * shift) * old + new * fall
        total = total * old + new
        peak = top
    most = tl.max(peak, 0)
    safe = tl.where(most == float("-inf"), 0.0, most)
    shift = tl.where(peak == float("-inf"), 0.0, peak - safe)
    old = tl.where(peak == float("-inf"), 0.0, tl.exp2(shift * LOG2_E))
    tl.store(peaks + row, most)
    tl.store(totals + row, tl.sum(total * old, 0))
    tl.store(moments + row, tl.sum((moment + total * shift) * old, 0))
    token = tl.load(tokens + row)
    here = (token >= 0) & (token < vocab)
    x = tl.load(start + token, mask=here, other=0.0).to(tl.float32)
    tl.store(chosens + row, tl.where(here, _scores(x, inverse, SOFTCAP), float("-inf")))


@triton.jit
def gradient_kernel(
    logits, tokens, inverses, normalisers, entropies, by_logprobs, by_entropies, vocab, stride,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Overwrite `BLOCK` logits of a row by their gradient."""
    row = tl.program_id(1)
    inverse = tl.load(inverses + row)
    by_logprob = tl.load(by_logprobs + row)
    by_entropy = tl.load(by_entropies + row)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < vocab
    spot = logits + row.to(tl.int64) * stride + lane
    x = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
    scores = _scores(x, inverse, SOFTCAP)
    logs = scores - tl.load(normalisers + row)
    p = tl.exp2(logs * LOG2_E)
    # e^-inf * -inf is nothing
    logs = tl.where(logs == float("-inf"), 0.0, logs)
    result = -p * (by_logprob + by_entropy * (logs + tl.load(entropies + row)))
    result += tl.where(lane == tl.load(tokens + row), by_logprob, 0.0)
    if SOFTCAP > 0.0:
        bent = scores / (SOFTCAP * inverse)
        result = result * (1.0 - bent * bent)
    tl.store(spot, (result * inverse).to(logits.dtype.element_ty), mask=inside)
