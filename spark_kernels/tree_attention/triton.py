"""The GPU kernel of `tree_attention`: one launch writes the new keys, attends and merges.

README.md has the algorithm; csrc/include/spark/schedule.h the work list it walks.
"""

from __future__ import annotations

import triton
import triton.language as tl

# words of the schedule's header and of one of its items
NUM_ITEMS, ITEMS, ORDER, PARTS, SLOTS = (tl.constexpr(i) for i in range(5))
ITEM_WORDS = tl.constexpr(8)
MERGE_ROWS = tl.constexpr(16)
MERGE_UNROLL = tl.constexpr(4)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(words, item, head, group, start, SIZE: tl.constexpr):
    """Return (row in item?, its token, its query head) of `SIZE` rows from `start`."""
    row = start + tl.arange(0, SIZE)
    inside = row < tl.load(item + 3)
    order = words + tl.load(words + ORDER) + tl.load(item + 1)
    token = tl.load(order + row // group, mask=inside, other=0)
    return inside, token, head * group + row % group


@triton.jit
def _scores(s, scale, SOFTCAP: tl.constexpr):
    """Return the scores times log2(e), for exp2."""
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (e^2x + 1)
        doubled = tl.exp2(s * (scale * (2.0 / SOFTCAP) * LOG2_E))
        s = (1.0 - 2.0 / (doubled + 1.0)) * (SOFTCAP * LOG2_E)
    else:
        s = s * (scale * LOG2_E)
    return s


@triton.jit
def _attend(
    q, k, v, k_cache, v_cache, out, words, positions, partial, stats, item, alone, head, kv_heads,
    group, scale, q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attend the rows of one item over its keys; store results, or partial ones to merge."""
    table = words + tl.load(item)
    row_begin = tl.load(item + 2)
    key_begin = tl.load(item + 4)
    key_end = tl.load(item + 5)
    part = tl.load(item + 6)
    own = tl.load(item + 7)
    inside, token, q_of = _rows(words, item, head, group, row_begin, ROWS)
    position = tl.load(positions + token, mask=inside, other=-1).to(tl.int32)
    wide = token.to(tl.int64)
    dim = tl.arange(0, WIDTH)
    real = dim < DIM
    full = inside[:, None] & real[None, :]
    at_q = wide * q_token + q_of.to(tl.int64) * q_head
    x = tl.load(q + at_q[:, None] + dim[None, :], mask=full, other=0.0)

    # keys from `fresh` on are this step's: they are read where they come from
    first = tl.load(words + tl.load(words + ORDER) + tl.load(item + 1))
    fresh = tl.where(own == 1, tl.load(positions + first).to(tl.int32), key_end)
    end = tl.minimum(key_end, tl.max(position, 0) + 1)
    begin = key_begin
    if WINDOW > 0:
        lowest = tl.min(tl.where(inside, position, 2147483647), 0)
        begin = tl.maximum(begin, lowest - WINDOW + 1)

    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in tl.range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        seen = key < end
        cached = key < fresh
        block = tl.load(table + key // BLOCK, mask=seen & cached, other=0).to(tl.int64)
        in_cache = ((block * kv_heads + head) * BLOCK + key % BLOCK) * DIM
        new = (first + key - fresh).to(tl.int64)
        k_at = tl.where(cached, k_cache + in_cache, k + (new * k_token + head * k_head))
        v_at = tl.where(cached, v_cache + in_cache, v + (new * v_token + head * v_head))
        there = seen[:, None] & real[None, :]
        keys = tl.load(k_at[:, None] + dim[None, :], mask=there, other=0.0)
        s = _scores(tl.dot(x, tl.trans(keys), input_precision="ieee"), scale, SOFTCAP)
        visible = (key[None, :] <= position[:, None]) & seen[None, :]
        if WINDOW > 0:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        s = tl.where(visible, s, float("-inf"))
        peak = tl.maximum(high, tl.max(s, 1))
        # a row that has seen nothing yet must not subtract infinities
        safe = tl.where(peak == float("-inf"), 0.0, peak)
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(high - safe)
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(v_at[:, None] + dim[None, :], mask=there, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
        high = peak

    whole = inside[:, None] & real[None, :]
    if alone:
        # total is 0 for a row without keys only
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        at_out = wide * out_token + q_of.to(tl.int64) * out_head
        tl.store(out + at_out[:, None] + dim[None, :], acc.to(out.dtype.element_ty), mask=whole)
    else:
        slot = tl.load(words + tl.load(words + SLOTS) + token, mask=inside, other=0) + part
        at = slot.to(tl.int64) * (kv_heads * group) + q_of
        tl.store(stats + at * 2, high, mask=inside)
        tl.store(stats + at * 2 + 1, total, mask=inside)
        tl.store(partial + at[:, None] * DIM + dim[None, :], acc, mask=whole)


@triton.jit
def _write(
    k, v, k_cache, v_cache, words, positions, item, head, kv_heads, group, k_token, k_head,
    v_token, v_head, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the new keys of the item's tokens to the cache, for the steps to come.

    A token belongs to the item that has its first row and whose keys it is among.
    """
    table = words + tl.load(item)
    order = words + tl.load(words + ORDER) + tl.load(item + 1)
    row_begin, row_end = tl.load(item + 2), tl.load(item + 3)
    key_begin, key_end = tl.load(item + 4), tl.load(item + 5)
    stop = (row_end + group - 1) // group
    dim = tl.arange(0, WIDTH)
    for start in range((row_begin + group - 1) // group, stop, MERGE_ROWS):
        place = start + tl.arange(0, MERGE_ROWS)
        token = tl.load(order + place, mask=place < stop, other=0).to(tl.int64)
        position = tl.load(positions + token, mask=place < stop, other=-1).to(tl.int32)
        mine = (key_begin <= position) & (position < key_end)
        block = tl.load(table + position // BLOCK, mask=mine, other=0).to(tl.int64)
        to = ((block * kv_heads + head) * BLOCK + position % BLOCK) * DIM
        keep = mine[:, None] & (dim < DIM)[None, :]
        new = k + (token * k_token + head * k_head)
        moved = tl.load(new[:, None] + dim[None, :], mask=keep, other=0.0)
        tl.store(k_cache + to[:, None] + dim[None, :], moved, mask=keep)
        new = v + (token * v_token + head * v_head)
        moved = tl.load(new[:, None] + dim[None, :], mask=keep, other=0.0)
        tl.store(v_cache + to[:, None] + dim[None, :], moved, mask=keep)


@triton.jit
def _merge(
    out, words, partial, stats, counters, item, head, kv_heads, group, out_token, out_head, start,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Count these rows' partial results; merge those of rows that have all of theirs now."""
    inside, token, q_of = _rows(words, item, head, group, start, MERGE_ROWS)
    parts = tl.load(words + tl.load(words + PARTS) + token, mask=inside, other=1)
    waits = inside & (parts > 1)
    heads = kv_heads * group
    counter = counters + token * heads + q_of
    before = tl.atomic_add(counter, 1, mask=waits, sem="acq_rel", scope="gpu")
    last = waits & (before == parts - 1)
    rounds = tl.max(tl.where(last, parts, 0), 0)
    if rounds > 0:
        # what the threads that counted have seen, all threads of the block see
        tl.debug_barrier()
        slot = tl.load(words + tl.load(words + SLOTS) + token, mask=last, other=0).to(tl.int64)
        dim = tl.arange(0, WIDTH)
        real = dim < DIM
        high = tl.full([MERGE_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([MERGE_ROWS], tl.float32)
        acc = tl.zeros([MERGE_ROWS, WIDTH], tl.float32)
        for base in tl.range(0, rounds, MERGE_UNROLL):
            for step in tl.static_range(MERGE_UNROLL):
                there = last & (base + step < parts)
                at = (slot + base + step) * heads + q_of
                peak = tl.load(
                    stats + at * 2, mask=there, other=float("-inf"), cache_modifier=".cg"
                )
                weight = tl.load(stats + at * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
                value = tl.load(
                    partial + at[:, None] * DIM + dim[None, :],
                    mask=there[:, None] & real[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                top = tl.maximum(high, peak)
                safe = tl.where(top == float("-inf"), 0.0, top)
                old, new = tl.exp2(high - safe), tl.exp2(peak - safe)
                total = total * old + weight * new
                acc = acc * old[:, None] + value * new[:, None]
                high = top
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        at_out = token.to(tl.int64) * out_token + q_of.to(tl.int64) * out_head
        spot = out + at_out[:, None] + dim[None, :]
        tl.store(spot, result.to(out.dtype.element_ty), mask=last[:, None] & real[None, :])
        # ready for the next layer, or the next replay of a graph
        tl.store(counter, 0, mask=last)


@triton.jit
def tree_attention_kernel(
    q, k, v, k_cache, v_cache, out, words, positions, partial, stats, counters, kv_heads, group,
    scale, q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, SMALL: tl.constexpr, LARGE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Walk the work list: every program takes each `num_programs`-th (item, key/value head)."""
    count = tl.load(words + NUM_ITEMS) * kv_heads
    items = words + tl.load(words + ITEMS)
    for index in range(tl.program_id(0), count, tl.num_programs(0)):
        item = items + index // kv_heads * ITEM_WORDS
        head = index % kv_heads
        row_begin, row_end = tl.load(item + 2), tl.load(item + 3)
        token = tl.load(words + tl.load(words + ORDER) + tl.load(item + 1) + row_begin // group)
        # the tokens of a run may differ in their number of parts, but only an own run has one
        alone = tl.load(words + tl.load(words + PARTS) + token) == 1
        if SMALL == LARGE or row_end - row_begin <= SMALL:
            _attend(
                q, k, v, k_cache, v_cache, out, words, positions, partial, stats, item, alone, head,
                kv_heads, group, scale, q_token, q_head, k_token, k_head, v_token, v_head,
                out_token, out_head, DIM, WIDTH, BLOCK, WINDOW, SOFTCAP, SMALL, KEYS,
            )  # fmt: skip
        else:
            _attend(
                q, k, v, k_cache, v_cache, out, words, positions, partial, stats, item, alone, head,
                kv_heads, group, scale, q_token, q_head, k_token, k_head, v_token, v_head,
                out_token, out_head, DIM, WIDTH, BLOCK, WINDOW, SOFTCAP, LARGE, KEYS,
            )  # fmt: skip
        if tl.load(item + 7) == 1:
            _write(
                k, v, k_cache, v_cache, words, positions, item, head, kv_heads, group, k_token,
                k_head, v_token, v_head, DIM, WIDTH, BLOCK,
            )  # fmt: skip
        if not alone:
            # partial results of every thread are written before any is counted
            tl.debug_barrier()
            for start in tl.range(row_begin, row_end, MERGE_ROWS):
                _merge(
                    out, words, partial, stats, counters, item, head, kv_heads, group, out_token,
                    out_head, start, DIM, WIDTH,
                )  # fmt: skip
