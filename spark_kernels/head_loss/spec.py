"""`head_loss` as data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spark_kernels.head_loss.op import head_loss
from spark_kernels.head_loss.policy import PolicyLoss
from spark_kernels.head_loss.reference import head_loss_reference
from spark_kernels.spec import Argument, OpSpec, Sizes


def objective(advantage: Tensor, old: Tensor) -> PolicyLoss:
    """Return a loss like that of training, without its kinks: ratio, KL, a bonus for entropy."""
    return PolicyLoss(
        old=old,
        gain=advantage.clamp(min=0),
        cost=advantage.clamp(max=0),
        reference=old,
        kl=torch.full_like(old, 0.1),
        bonus=torch.full_like(old, 0.01),
        clip_low=1.0,
        clip_high=math.inf,
    )


def init(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Return `N` rows over `T` states; every third row is limited to a few tokens."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count, vocab = sizes["N"], sizes["V"]
    tokens = torch.randint(vocab, (count,), generator=generator)
    few = min(vocab, 2)
    limited = torch.arange(0, count, 3).repeat_interleave(few)
    choice = torch.stack([tokens[::3], (tokens[::3] + 1) % vocab], 1)[:, :few].flatten()
    # about what the rows will say, so that no ratio explodes
    old = 0.3 * normal(count) - math.log(vocab)
    old[::3] = -0.7
    return {
        "hidden": normal(sizes["T"], sizes["H"]).to(dtype).requires_grad_(),
        "weight": (normal(vocab, sizes["H"]) * 0.5 * sizes["H"] ** -0.5).to(dtype).requires_grad_(),
        "rows": torch.randint(sizes["T"], (count,), generator=generator),
        "tokens": tokens,
        "loss": objective(normal(count), old),
        "temperature": torch.rand(count, generator=generator) + 0.5,
        "allowed": (limited, choice),
    }


def call(**inputs: Any) -> tuple[Tensor, ...]:
    """Return the scores and the gradients."""
    loss, logprob, entropy = head_loss(**inputs, chunk=1000)
    gradients = torch.autograd.grad(loss, (inputs["hidden"], inputs["weight"]))
    return loss.detach(), logprob, entropy, *gradients


def definition(**inputs: Any) -> tuple[Tensor, ...]:
    """Return what the reference makes of the same inputs in fp64, on the CPU."""
    where, dtype = inputs["hidden"].device, inputs["hidden"].dtype
    wide: dict[str, Any] = {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    for name in ("hidden", "weight"):
        wide[name] = wide[name].double().requires_grad_()
    loss, logprob, entropy = head_loss_reference(**wide)
    gradients = torch.autograd.grad(loss, (wide["hidden"], wide["weight"]))
    scores = [x.detach().float().to(where) for x in (loss, logprob, entropy)]
    return (*scores, *(g.to(where, dtype) for g in gradients))


SPEC = OpSpec(
    name="head_loss",
    summary="a loss of log-probability and entropy behind the LM head, gradients in one pass",
    axes={
        "T": "hidden states",
        "N": "scored tokens",
        "K": "allowed tokens of limited rows",
        "H": "hidden size",
        "V": "vocabulary",
    },
    inputs={
        "hidden": Argument(("T", "H"), "float", "final hidden states"),
        "weight": Argument(("V", "H"), "float", "of the LM head"),
        "rows": Argument(("N",), "int64", "the state that predicts each token"),
        "tokens": Argument(("N",), "int64", "the tokens"),
        "temperature": Argument(("N",), "float32", "> 0; None = 1", optional=True),
        "allowed_row": Argument(("K",), "int64", "limited rows, ascending", optional=True),
        "allowed_token": Argument(("K",), "int64", "what they may choose", optional=True),
    },
    outputs={
        "loss": Argument((), "float32", "sum over the chunks"),
        "logprob": Argument(("N",), "float32", "of the tokens"),
        "entropy": Argument(("N",), "float32", "of the rows"),
        "hidden_grad": Argument(("T", "H"), "float", "gradient of hidden"),
        "weight_grad": Argument(("V", "H"), "float", "gradient of weight, summed in float32"),
    },
    call=call,
    reference=definition,
    init=init,
    cases=(
        {"T": 1, "N": 0, "H": 16, "V": 7},
        {"T": 3, "N": 5, "H": 8, "V": 1},
        {"T": 5, "N": 9, "H": 24, "V": 1023},
        {"T": 40, "N": 37, "H": 64, "V": 4099},
    ),
    # logits are rounded to the dtype of the products
    tolerance={torch.float32: 2e-5, torch.bfloat16: 2e-2},
    # states and head once a pass; logits written, read, overwritten, and read by two products
    bytes=lambda s, element: (
        element * (s["H"] * (2 * s["N"] + 3 * s["V"]) + 5 * s["N"] * s["V"]) + 4 * s["H"] * s["V"]
    ),
    flops=lambda s: 6 * s["N"] * s["H"] * s["V"],
)
