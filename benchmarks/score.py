"""`score` against the same answers from torch ops: log_softmax, entropy, multinomial, gather."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Case, compare
from spark_kernels import score, spec

OP = spec.load("score")
BIG = 151_936


def run(quick: bool = False) -> list[Case]:
    """Return the cases of the suite; the first is the one with targets."""
    rounds = 5 if quick else 15
    sizes = [(64, BIG), (1, BIG), (32, 2048)]
    cases = []
    for rows, vocab in sizes[: 1 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            cases.append(sampling(rows, vocab, dtype, rounds))
    return cases + [variant(name, rounds) for name in ("tempered", "top_p", "top_k", "allowed")]


def naive(logits: Tensor) -> tuple[Tensor, ...]:
    """Return token, log-probability and entropy the usual way."""
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    token = torch.multinomial(p, 1)
    return token[:, 0], logp.gather(-1, token)[:, 0], entropy


def sampling(rows: int, vocab: int, dtype: torch.dtype, rounds: int) -> Case:
    """Time plain sampling; the floor is one read of the logits at the machine's copy bandwidth."""
    logits = (3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))).to(dtype)
    seed, position = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    out = score(logits, seed=seed, position=position)
    some = logits.flatten()[: logits.numel() // 2]
    half = torch.empty_like(some)
    flagship = (rows, vocab, dtype) == (64, BIG, torch.float32)
    return compare(
        op="score",
        case={"B": rows, "V": vocab, "dtype": str(dtype).removeprefix("torch.")},
        ours=lambda: score(logits, seed=seed, position=position, out=out),
        baselines={"torch": lambda: naive(logits)},
        correct=lambda: agrees(logits, seed, position),
        # copying half the logits moves as many bytes as reading all of them
        floor=lambda: half.copy_(some),
        targets={"torch": 15, "floor": 0.6} if flagship else None,
        rounds=rounds,
    )


def variant(name: str, rounds: int) -> Case:
    """Time one way of sampling on 64 rows; the baseline is plain sampling of the same rows."""
    full = OP.init({"B": 64, "V": BIG}, torch.float32, torch.Generator().manual_seed(0))
    plain = {key: full[key] for key in ("logits", "seed", "position")}
    settings = {
        "tempered": {"temperature": full["temperature"]},
        "top_p": {"top_p": torch.full((64,), 0.95)},
        "top_k": {"top_k": torch.full((64,), 50, dtype=torch.int32)},
        "allowed": {"allowed": full["allowed"]},
    }[name]
    out = score(**plain)
    return compare(
        op="score",
        case={"B": 64, "V": BIG, "dtype": "float32", "with": name},
        ours=lambda: score(**plain, **settings, out=out),
        baselines={"plain": lambda: score(**plain, out=out)},
        correct=lambda: agrees(**{k: v[:4] for k, v in {**plain, **settings}.items()}),
        rounds=rounds,
    )


def agrees(logits: Tensor, seed: Tensor, position: Tensor, **settings: Tensor) -> bool:
    """Return whether op and reference agree on the first rows."""
    rows = {"logits": logits, "seed": seed, "position": position, **settings}
    inputs = {key: value[:4].contiguous() for key, value in rows.items()}
    pairs = zip(OP.call(**inputs), OP.reference(**inputs), strict=True)
    return all(torch.allclose(a, b, rtol=5e-6, atol=5e-6) for a, b in pairs)
