"""`score` as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spark_kernels.score.op import score
from spark_kernels.score.reference import reference
from spark_kernels.spec import Argument, OpSpec, Sizes

ROW = ("B",)


def init(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Return logits like a language model's, with a different way of sampling in each row."""
    rows, vocab = sizes["B"], sizes["V"]

    def rand(low: float, high: float) -> Tensor:
        return torch.rand(rows, generator=generator) * (high - low) + low

    words = (rows, -(-vocab // 32))
    allowed = torch.randint(-(2**31), 2**31, words, generator=generator).to(torch.int32)
    # token 0 is allowed everywhere: no row is left empty
    allowed[:, 0] |= 1
    return {
        "logits": (3 * torch.randn(rows, vocab, generator=generator)).to(dtype),
        "temperature": rand(0.5, 1.5),
        "top_k": torch.randint(0, vocab + 1, (rows,), generator=generator).to(torch.int32),
        "top_p": rand(0.5, 1.0),
        "min_p": rand(0.0, 0.1),
        "allowed": allowed,
        "seed": torch.randint(2**62, (rows,), generator=generator),
        "position": torch.arange(rows),
        "tempered_entropy": True,
    }


def call(**inputs: Any) -> tuple[Tensor, ...]:
    """Return the scores of freshly made inputs."""
    return tuple(value for value in score(**inputs) if value is not None)


def definition(**inputs: Any) -> tuple[Tensor, ...]:
    """Return what the reference says of the same inputs."""
    return tuple(value for value in reference(**inputs) if value is not None)


SPEC = OpSpec(
    name="score",
    summary="sampled token, log-probability, kept mass, entropy and varentropy of each row",
    axes={"B": "sequences", "V": "vocabulary", "W": "words of the bitmask, ceil(V / 32)"},
    inputs={
        "logits": Argument(("B", "V"), "float", "row stride may exceed V"),
        "temperature": Argument(ROW, "float32", "0 = greedy, None = 1", optional=True),
        "top_k": Argument(ROW, "int32", "0 = off", optional=True),
        "top_p": Argument(ROW, "float32", "1 = off", optional=True),
        "min_p": Argument(ROW, "float32", "0 = off", optional=True),
        "allowed": Argument(("B", "W"), "int32", "bit set = token allowed", optional=True),
        "seed": Argument(ROW, "int64", "with position fixes the draw", optional=True),
        "position": Argument(ROW, "int64", "counter of the draw", optional=True),
        "tokens": Argument(ROW, "int64", "token to score, -1 = sample", optional=True),
    },
    outputs={
        "tokens": Argument(ROW, "int64", "-1 where the row is invalid"),
        "logprob": Argument(ROW, "float32", "log p_T(token), full distribution"),
        "log_kept_mass": Argument(ROW, "float32", "log of the p_T-mass that was kept"),
        "entropy": Argument(ROW, "float32", "at temperature 1"),
        "varentropy": Argument(ROW, "float32", "at temperature 1"),
        "entropy_tempered": Argument(ROW, "float32", "of p_T", optional=True),
        "varentropy_tempered": Argument(ROW, "float32", "of p_T", optional=True),
    },
    call=call,
    reference=definition,
    init=init,
    cases=tuple({"B": rows, "V": vocab} for rows, vocab in ((0, 5), (1, 1), (3, 1023), (5, 4099))),
    tolerance={torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6},
    bytes=lambda sizes, element: sizes["B"] * sizes["V"] * element,
    # subtract, exponential of 11 operations, three sums, maximum
    flops=lambda sizes: sizes["B"] * sizes["V"] * 17,
)
