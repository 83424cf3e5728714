"""Triton kernels of `head_loss`: statistics, gradient, and both in one around a known loss."""

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
def _reduced(start, inverse, vocab, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr):
    """Return maximum, sum and first moment of a row.

    What a thread loads at once is a line of the block; every line keeps its own three numbers.
    KEEP: how long the row should stay in the cache, an eviction policy.
    """
    WIDTH: tl.constexpr = 128 // start.dtype.element_ty.primitive_bitwidth
    lane = tl.arange(0, BLOCK)
    peak = tl.full([BLOCK // WIDTH], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK // WIDTH], tl.float32)
    moment = tl.zeros([BLOCK // WIDTH], tl.float32)
    for base in tl.range(0, vocab, BLOCK):
        inside = base + lane < vocab
        x = tl.load(start + base + lane, mask=inside, other=float("-inf"), eviction_policy=KEEP)
        x = tl.where(inside, _scores(x.to(tl.float32), inverse, SOFTCAP), float("-inf"))
        x = tl.reshape(x, [BLOCK // WIDTH, WIDTH])
        top = tl.maximum(peak, tl.max(x, 1))
        # a line that has seen nothing finite must not subtract infinities
        safe = tl.where(top == float("-inf"), 0.0, top)
        shift = tl.where(peak == float("-inf"), 0.0, peak - safe)
        old = tl.exp2(shift * LOG2_E)
        fall = x - safe[:, None]
        new = tl.exp2(fall * LOG2_E)
        # 0 * -inf is nothing
        more = tl.sum(tl.where(x == float("-inf"), 0.0, new * fall), 1)
        moment = (moment + total * shift) * old + more
        total = total * old + tl.sum(new, 1)
        peak = top
    most = tl.max(peak, 0)
    safe = tl.where(most == float("-inf"), 0.0, most)
    shift = tl.where(peak == float("-inf"), 0.0, peak - safe)
    old = tl.where(peak == float("-inf"), 0.0, tl.exp2(shift * LOG2_E))
    return most, tl.sum(total * old, 0), tl.sum((moment + total * shift) * old, 0)


@triton.jit
def _chosen(start, token, inverse, vocab, SOFTCAP: tl.constexpr):
    """Return the score of a row's token, -inf where it is not in this part of the vocabulary."""
    here = (token >= 0) & (token < vocab)
    x = tl.load(start + token, mask=here, other=0.0).to(tl.float32)
    return tl.where(here, _scores(x, inverse, SOFTCAP), float("-inf"))


@triton.jit
def _gradient(
    x, chosen, inverse, normaliser, entropy, by_logprob, by_entropy, SOFTCAP: tl.constexpr
):  # fmt: skip
    """Return the gradient of logits `x`; `chosen` is the one of the row's token."""
    scores = _scores(x, inverse, SOFTCAP)
    logs = scores - normaliser
    p = tl.exp2(logs * LOG2_E)
    # e^-inf * -inf is nothing
    logs = tl.where(logs == float("-inf"), 0.0, logs)
    result = -p * (by_logprob + by_entropy * (logs + entropy))
    result += tl.where(chosen, by_logprob, 0.0)
    if SOFTCAP > 0.0:
        bent = scores * (1.0 / (SOFTCAP * inverse))
        result = result * (1.0 - bent * bent)
    return result * inverse


@triton.jit
def statistics_kernel(
    logits, tokens, inverses, peaks, totals, moments, chosens, vocab, stride,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce one row."""
    row = tl.program_id(0)
    inverse = tl.load(inverses + row)
    start = logits + row.to(tl.int64) * stride
    peak, total, moment = _reduced(start, inverse, vocab, SOFTCAP, BLOCK, "evict_first")
    tl.store(peaks + row, peak)
    tl.store(totals + row, total)
    tl.store(moments + row, moment)
    tl.store(chosens + row, _chosen(start, tl.load(tokens + row), inverse, vocab, SOFTCAP))


@triton.jit
def gradient_kernel(
    logits, tokens, inverses, normalisers, entropies, by_logprobs, by_entropies, vocab, stride,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Overwrite `BLOCK` logits of a row by their gradient."""
    row = tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < vocab
    spot = logits + row.to(tl.int64) * stride + lane
    x = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
    result = _gradient(
        x, lane == tl.load(tokens + row), tl.load(inverses + row),
        tl.load(normalisers + row), tl.load(entropies + row),
        tl.load(by_logprobs + row), tl.load(by_entropies + row), SOFTCAP,
    )  # fmt: skip
    tl.store(spot, result.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def policy_kernel(
    logits, tokens, inverses, columns, out, vocab, stride, count, low, high,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce a row, evaluate `PolicyLoss`, overwrite the row by its gradient; then the next row.

    columns: old, gain, cost, reference, kl, bonus; out: loss, logprob, entropy; [., count].
    low, high: bounds of the ratio. As few programs as fill the device: L2 holds their rows.
    """
    for row in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        inverse = tl.load(inverses + row)
        token = tl.load(tokens + row)
        start = logits + tl.cast(row, tl.int64) * stride
        peak, total, moment = _reduced(start, inverse, vocab, SOFTCAP, BLOCK, "evict_last")
        spread = tl.log(total)
        normaliser = peak + spread
        entropy = spread - moment / total
        logprob = _chosen(start, token, inverse, vocab, SOFTCAP) - normaliser

        own = columns + row
        gain, cost = tl.load(own + count), tl.load(own + 2 * count)
        kl, bonus = tl.load(own + 4 * count), tl.load(own + 5 * count)
        ratio = tl.exp(logprob - tl.load(own))
        # a token without KL may be as far from the reference as it likes
        far = tl.where(kl == 0.0, 0.0, tl.load(own + 3 * count) - logprob)
        beyond = tl.exp(far) - 1.0
        loss = kl * (beyond - far) - bonus * entropy
        loss -= gain * tl.minimum(ratio, high) + cost * tl.maximum(ratio, low)
        tl.store(out + row, loss)
        tl.store(out + count + row, logprob)
        tl.store(out + 2 * count + row, entropy)
        earning = tl.where(ratio <= high, gain, 0.0) + tl.where(ratio >= low, cost, 0.0)
        by_logprob = -earning * ratio - kl * beyond

        # every warp has read the token's logit before one overwrites it
        tl.debug_barrier()
        lane = tl.arange(0, BLOCK)
        for base in tl.range(0, vocab, BLOCK):
            spot = start + base + lane
            inside = lane < vocab - base
            x = tl.load(spot, mask=inside, other=0.0, eviction_policy="evict_first")
            result = _gradient(
                x.to(tl.float32), lane == token - base, inverse, normaliser, entropy, by_logprob,
                -bonus, SOFTCAP,
            )  # fmt: skip
            tl.store(spot, result.to(logits.dtype.element_ty), mask=inside)
