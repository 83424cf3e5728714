"""`tree_attention` in decode over a grid of trees, against the plain path and torch's attention."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.device import Measurement, clock, copies_to_stay_cold, floor, graphed, within
from benchmarks.harness import Case, compare
from spark_kernels import BlockPool, tree_attention
from spark_kernels.tree_attention import DevicePlan

HEADS, KV_HEADS, DIM, SIZE = 28, 4, 128, 16
TOLERANCE = 1e-2


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return one level over prefixes and leaves, then deeper trees."""
    if quick:
        return [partial(decode, 64, 2, 16, 1, device, quick)]
    prefixes, leaves = (0, 1024, 4096, 16384, 32768), (1, 8, 16, 32, 64)
    flat = [(p, b, 256, 1) for p in prefixes for b in leaves]
    deep = [(4096, 2**depth, 256, depth) for depth in (2, 4, 6)]
    return [partial(decode, *shape, device, quick) for shape in (*flat, *deep)]


def tree(prefix: int, leaves: int, own: int, levels: int) -> tuple[BlockPool, list[int], int]:
    """Return a pool, its leaves, and the distinct tokens: with levels, each splits in two."""
    pool = BlockPool(2 * (prefix + leaves * levels * (own + SIZE)) // SIZE + 2 * leaves + 8, SIZE)
    tips, distinct = [pool.open()], prefix
    pool.append(tips[0], prefix)
    for _ in range(levels):
        ways = leaves if levels == 1 else 2
        forked = [child for tip in tips for child in pool.fork(tip, ways)[0]]
        for seq in tips:
            pool.release(seq)
        tips = forked
        for seq in tips:
            pool.append(seq, own)
        distinct += own * len(tips)
    return pool, tips, distinct


class Layers:
    """One decode step of several layers, so that no layer's keys are in the L2 cache."""

    def __init__(self, pool: BlockPool, seqs: list[int], count: int, device: torch.device):
        self.seqs, self.pool, self.device = seqs, pool, device
        host = {share: pool.plan(seqs, [1] * len(seqs), share=share) for share in (True, False)}
        self.tables, self.lengths = host[True].tables, host[True].lengths
        self.plans: dict[bool, Any] = {
            share: plan if device.type == "cpu" else DevicePlan(plan, device, fixed_launch=True)
            for share, plan in host.items()
        }
        shape = (pool.num_blocks, KV_HEADS, SIZE, DIM)
        self.caches = [
            [torch.randn(shape, device=device).bfloat16() for _ in range(2)] for _ in range(count)
        ]
        rows = ((len(seqs), heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
        self.q, self.k, self.v = (torch.randn(r, device=device).bfloat16() for r in rows)

    def attend(self, caches: list[Tensor], share: bool) -> Tensor:
        """Run the op on one layer."""
        inputs = (self.q, self.k, self.v, *caches, self.plans[share])
        return tree_attention(*inputs, scale=DIM**-0.5)

    def dense(self, caches: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, KV_HEADS, longest, DIM] of every leaf."""
        longest = max(map(len, self.tables))
        rows = [table + [table[-1]] * (longest - len(table)) for table in self.tables]
        index = torch.tensor(rows, device=self.device)
        keys, values = (cache[index].transpose(1, 2).flatten(2, 3) for cache in caches)
        return keys, values

    def mask(self) -> Tensor:
        """Return bool [B, 1, 1, longest]: the keys a leaf has."""
        longest = SIZE * max(map(len, self.tables))
        lengths = torch.tensor(self.lengths, device=self.device)
        return (torch.arange(longest, device=self.device) < lengths[:, None])[:, None, None]

    def error(self) -> float:
        """Return the largest difference to attention on gathered keys in float32."""
        worst = 0.0
        for share in (True, False):
            ours = self.attend(self.caches[0], share)
            mask, dense = self.mask(), self.dense(self.caches[0])
            # a leaf at a time: in float32 torch repeats the keys for every query head
            for leaf in range(len(self.seqs)):
                one = slice(leaf, leaf + 1)
                q, keys, values = (x[one].float() for x in (self.q[:, :, None], *dense))
                want = scaled_dot_product_attention(
                    q, keys, values, attn_mask=mask[one], enable_gqa=True
                )
                worst = max(worst, (ours[one].float() - want[:, :, 0]).abs().max().item())
        return worst

    def repeated_bytes(self) -> int:
        """Return what torch may need to repeat keys and values for every query head."""
        longest = SIZE * max(map(len, self.tables))
        return 3 * len(self.seqs) * longest * HEADS * DIM * 2


def decode(
    prefix: int, leaves: int, own: int, levels: int, device: torch.device, quick: bool
) -> list[Case]:
    """Time one layer's decode step; everything is captured in a graph of several layers."""
    pool, seqs, distinct = tree(prefix, leaves, own, levels)
    nbytes = distinct * KV_HEADS * DIM * 2 * 2
    everywhere = pool.num_blocks * SIZE * KV_HEADS * DIM * 2 * 2
    # as many layers as leave the cache cold, if 8 GB hold them
    count = min(copies_to_stay_cold(nbytes, quick), 2 + (8 << 30) // everywhere)
    layers = Layers(pool, seqs, count, device)
    mask = layers.mask()

    def torchs(pair: tuple[Tensor, Tensor]) -> Tensor:
        return scaled_dot_product_attention(
            layers.q[:, :, None], *pair, attn_mask=mask, enable_gqa=True
        )

    baselines = flashinfer(layers, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if device.type == "cpu" or layers.repeated_bytes() < torch.cuda.mem_get_info(device)[0] // 2:
        gathered = [layers.dense(c) for c in layers.caches[:2]]
        pairs = [gathered[i % 2] for i in range(count)]
        baselines["torch"] = graphed(torchs, pairs, device)

    least = floor(nbytes, device, quick)
    worst = layers.error()
    case = compare(
        op="tree_attention",
        case={
            "model": "Qwen2.5-7B",
            "prefix": prefix,
            "leaves": leaves,
            "own": own,
            "levels": levels,
            "launched": "graph",
        },
        ours=graphed(lambda c: layers.attend(c, True), layers.caches, device),
        baselines={
            "unshared": graphed(lambda c: layers.attend(c, False), layers.caches, device),
            **baselines,
        },
        correct=lambda: worst <= TOLERANCE,
        floor=least * count,
        # never more than 1.1 times slower than decoding each leaf alone
        targets={"unshared": 1 / 1.1},
        rounds=3 if quick else 15,
        clock=clock(device),
    )
    case.ours = case.ours.scaled(1 / count)
    case.baselines = {name: time.scaled(1 / count) for name, time in case.baselines.items()}
    case.floor, case.error = least * 1e3, worst
    return [within(case, 1.5 * case.floor + 4e-3)]


def flashinfer(layers: Layers, device: torch.device) -> dict[str, Any]:
    """Return FlashInfer's paged batch decode, every leaf alone, where it can be imported."""
    if find_spec("flashinfer") is None:
        return {}
    import flashinfer as library

    room = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(room, "HND", use_tensor_cores=True)
    counts = torch.tensor([0, *map(len, layers.tables)], dtype=torch.int32)
    pages = torch.tensor([b for table in layers.tables for b in table], dtype=torch.int32)
    last = torch.tensor([(n - 1) % SIZE + 1 for n in layers.lengths], dtype=torch.int32)
    starts = counts.cumsum(0, dtype=torch.int32)
    wrapper.plan(
        *(x.to(device) for x in (starts, pages, last)),
        *(HEADS, KV_HEADS, DIM, SIZE),
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    return {
        "flashinfer": graphed(
            lambda caches: wrapper.run(layers.q, tuple(caches)), layers.caches, device
        )
    }
