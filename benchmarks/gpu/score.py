"""`score` against torch (eager and compiled), the usual library path, and FlashInfer's sampler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import (
    Measurement,
    clock,
    copies_to_stay_cold,
    floor,
    in_a_graph,
    largest_error,
    rotate,
    within,
)
from benchmarks.harness import Case, compare
from spark_kernels import score
from spark_kernels.score.reference import reference

BIG = 151_936
Inputs = dict[str, Any]


def measurements(device: torch.device, quick: bool) -> list[Measurement]:
    """Return plain sampling over batch sizes, then the ways of truncating."""
    vocab = 3_001 if quick else BIG
    rows = (4,) if quick else (1, 16, 64, 128, 256, 1024)
    wide = (4,) if quick else (16, 256)
    captured = (4,) if quick else (1, 16, 128, 256, 1024)
    where = (vocab, device, quick)
    # the targets first
    return [
        *(partial(without_the_host, b, *where) for b in captured),
        *(partial(variant, way, max(wide), *where) for way in ("sampled", "top_p", "top_k")),
        *(partial(sampling, b, torch.bfloat16, *where) for b in rows),
        *(partial(sampling, b, torch.float32, *where) for b in wide),
    ]


def inputs_of(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Return logits, seeds and positions."""
    return {
        "logits": (3 * torch.randn(rows, vocab, device=device)).to(dtype),
        "seed": torch.arange(rows, device=device),
        "position": torch.zeros(rows, dtype=torch.int64, device=device),
    }


def naive(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return token, log-probability and entropy the usual way."""
    logp = torch.log_softmax(inputs["logits"].float(), -1)
    p = logp.exp()
    token = torch.multinomial(p, 1)
    return token[:, 0], logp.gather(-1, token)[:, 0], -(p * logp).sum(-1)


def sorted_top_p(inputs: Inputs, top_p: float = 0.95) -> tuple[Tensor, ...]:
    """Return token and log-probability through softmax, a sorted top-p, multinomial and gather."""
    logp = torch.log_softmax(inputs["logits"].float(), -1)
    p, order = logp.exp().sort(dim=-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    token = order.gather(-1, torch.multinomial(p, 1))
    return token[:, 0], logp.gather(-1, token)[:, 0]


def flashinfer(name: str, *settings: float) -> dict[str, Callable[[Inputs], object]]:
    """Return FlashInfer's sampler, ids only, where it can be imported."""
    if find_spec("flashinfer") is None:
        return {}
    from flashinfer import sampling as library

    draw = getattr(library, name)
    return {"flashinfer": lambda inputs: draw(inputs["logits"].float().softmax(-1), *settings)}


def case_of(inputs: Inputs, **more: str) -> dict[str, Any]:
    """Return the shapes as the results file names them."""
    rows, vocab = inputs["logits"].shape
    dtype = str(inputs["logits"].dtype).removeprefix("torch.")
    return {"B": rows, "V": vocab, "dtype": dtype, **more}


def error(inputs: Inputs) -> float:
    """Return the error of the first rows; the tokens must be the reference's."""
    first = {name: value[:8].contiguous() for name, value in inputs.items()}
    ours, wanted = score(**first), reference(**first)
    # a draw may fall within rounding of the edge between two tokens
    same = ours.tokens == wanted[0]
    assert int(same.sum()) >= len(same) - 1, "the tokens are not the reference's"
    return largest_error([x[same] for x in ours[1:5]], [x[same] for x in wanted[1:5]])


def measure(
    inputs: Inputs,
    baselines: dict[str, Callable[[Inputs], object]],
    device: torch.device,
    quick: bool,
    targets: dict[str, float] | None = None,
    **more: str,
) -> Case:
    """Time one way of sampling on inputs that take turns, so that none is in the L2 cache."""
    logits = inputs["logits"]
    nbytes = logits.numel() * logits.element_size()
    count = copies_to_stay_cold(nbytes, quick)
    many = [inputs, *({**inputs, "logits": logits.clone()} for _ in range(count - 1))]
    out, found = score(**inputs), error(inputs)
    case = compare(
        op="score",
        case=case_of(inputs, **more),
        ours=rotate(lambda one: score(**one, out=out), many),
        baselines={name: rotate(call, many) for name, call in baselines.items()},
        correct=lambda: found <= 5e-6 * (1 + float(out.varentropy.max())),
        floor=floor(nbytes, device, quick),
        targets=targets,
        rounds=3 if quick else 15,
        clock=clock(device),
    )
    case.error = found
    return case


def sampling(
    rows: int, dtype: torch.dtype, vocab: int, device: torch.device, quick: bool
) -> list[Case]:
    """Time plain sampling."""
    baselines: dict[str, Callable[[Inputs], object]] = {"torch": naive}
    if device.type == "cuda" and not quick:
        baselines["torch.compile"] = torch.compile(naive, dynamic=False)
    baselines |= flashinfer("sampling_from_probs")
    inputs = inputs_of(rows, vocab, dtype, device)
    return [measure(inputs, baselines, device, quick)]


def variant(name: str, rows: int, vocab: int, device: torch.device, quick: bool) -> list[Case]:
    """Time one way of truncating beside plain sampling, and that beside scoring given tokens."""
    inputs = inputs_of(rows, vocab, torch.bfloat16, device)
    tokens = torch.randint(vocab, (rows,), device=device)
    plain = dict(inputs)
    baselines: dict[str, Callable[[Inputs], object]] = {
        "plain": lambda one: score(**{key: one[key] for key in plain})
    }
    if name == "sampled":
        baselines = {"given": lambda one: score(**one, tokens=tokens)}
    elif name == "top_p":
        inputs["top_p"] = torch.full((rows,), 0.95, device=device)
        baselines |= {"sorted": sorted_top_p, **flashinfer("top_p_sampling_from_probs", 0.95)}
    else:
        inputs["top_k"] = torch.full((rows,), 50, dtype=torch.int32, device=device)
        baselines |= flashinfer("top_k_sampling_from_probs", 50)
    # drawing a token costs at most 15 % over scoring one that is given
    targets = {"given": 1 / 1.15} if name == "sampled" else None
    return [measure(inputs, baselines, device, quick, targets, **{"with": name})]


def without_the_host(rows: int, vocab: int, device: torch.device, quick: bool) -> list[Case]:
    """Time calls in a graph: few rows by the clock, many against reading their logits."""
    nbytes = rows * vocab * 2
    count = max(8, copies_to_stay_cold(nbytes, quick)) if not quick else 2
    many = [inputs_of(rows, vocab, torch.bfloat16, device) for _ in range(count)]
    out = score(**many[0])
    least = floor(nbytes, device, quick)

    def call(one: Inputs) -> object:
        return score(**one, out=out)

    case = in_a_graph("score", case_of(many[0]), call, many, least, device, quick)
    case.error = error(many[0])
    if rows < 128:
        return [within(case, 8e-3)]
    case.target = {"floor": 0.85}
    case.met = (case.fraction_of_floor or 0.0) >= 0.85
    return [case]
