"""`head_loss` against the same loss through torch's gradients of recomputed logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.harness import Case, compare
from spark_kernels.head_loss import Loss, PolicyLoss, head_loss
from spark_kernels.head_loss.reference import head_loss_reference

CUDA = torch.cuda.is_available()
# model -> hidden size, vocabulary
HEADS = {"Qwen2.5-0.5B": (896, 151_936), "Qwen2.5-1.5B": (1536, 151_936), "tiny": (128, 2048)}
CHUNK = 4096


def run(quick: bool = False) -> list[Case]:
    """Return one case per head; the floor is its three matrix products alone."""
    rounds = 3 if quick else 7
    if CUDA:
        sizes = [("Qwen2.5-1.5B", 8192), ("Qwen2.5-0.5B", 8192), ("Qwen2.5-1.5B", 1024)]
        return [step(model, rows, torch.bfloat16, rounds) for model, rows in sizes]
    cases = [step("tiny", 2048, torch.float32, rounds)]
    return cases if quick else [*cases, step("Qwen2.5-0.5B", 64, torch.float32, rounds)]


def step(model: str, count: int, dtype: torch.dtype, rounds: int) -> Case:
    """Time loss and gradients of `count` rows."""
    size, vocab = HEADS[model]
    device = "cuda" if CUDA else "cpu"
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, size, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(vocab, size, generator=generator).mul_(0.5 * size**-0.5)
    weight = weight.to(device, dtype).requires_grad_()
    rows = torch.arange(count, device=device)
    tokens = torch.randint(vocab, (count,), generator=generator).to(device)
    ones = torch.ones(count, device=device)
    loss = PolicyLoss(old=-9 * ones, gain=ones, cost=0 * ones, bonus=0.01 * ones, clip_high=0.25)

    def gradients(value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, (hidden, weight))

    def ours(loss: Loss = loss) -> tuple[Tensor, ...]:
        return gradients(head_loss(hidden, weight, rows, tokens, loss, chunk=CHUNK).loss)

    def any_loss() -> tuple[Tensor, ...]:
        return ours(loss.__call__)

    def scores(some: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        logs = (some @ weight.T).float().log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        return logs.gather(1, of[:, None])[:, 0], entropy

    def recomputed() -> tuple[Tensor, ...]:
        parts = [slice(i, i + CHUNK) for i in range(0, count, CHUNK)]
        values = [
            loss(*checkpoint(scores, hidden[p], tokens[p], use_reentrant=False), p) for p in parts
        ]
        return gradients(torch.stack(values).sum())

    def products() -> None:
        with torch.no_grad():
            for first in range(0, count, CHUNK):
                part = hidden[first : first + CHUNK]
                logits = part @ weight.T
                logits @ weight
                logits.T @ part

    return compare(
        op="head_loss",
        case={"model": model, "N": count, "dtype": str(dtype).removeprefix("torch.")},
        ours=ours,
        baselines={
            "torch recomputed": recomputed,
            **({"any loss": any_loss} if CUDA else {}),
            **liger(hidden, weight, tokens),
        },
        correct=lambda: agrees(ours(), hidden, weight, tokens, loss),
        floor=products,
        targets={"torch recomputed": 1.0, **({"floor": 0.9} if CUDA else {})},
        rounds=rounds,
    )


def liger(hidden: Tensor, weight: Tensor, tokens: Tensor) -> dict[str, Callable[[], object]]:
    """Return Liger's fused cross entropy (no entropy, no policy loss) where it is installed."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return {}
    op = LigerFusedLinearCrossEntropyLoss()
    return {
        "liger cross entropy": lambda: torch.autograd.grad(
            op(weight, hidden, tokens), (hidden, weight)
        )
    }


def agrees(
    got: tuple[Tensor, ...],
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    loss: Loss,
) -> bool:
    """Return whether the gradients are those of the reference, in float32, within 2 %."""
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    rows = torch.arange(len(tokens), device=tokens.device)
    value, _, _ = head_loss_reference(wide[0], wide[1], rows, tokens, loss)
    want = torch.autograd.grad(value, wide)
    return all(
        (ours.float() - theirs).norm() <= 0.02 * theirs.norm()
        for ours, theirs in zip(got, want, strict=True)
    )
