"""How `score` stands in torch's machinery.

The poisoned torch.empty stays away from here: the compiler lists torch's functions on first use.
"""

from __future__ import annotations

import torch

from spark_kernels import score
from spark_kernels.score import op

ROWS, VOCAB = 3, 70


def test_torch_accepts_the_operator() -> None:
    logits, seed = torch.randn(ROWS, VOCAB), torch.arange(ROWS)
    out = op._allocate(logits, False)
    arguments = (logits, *[None] * 5, seed, None, None, *out)
    torch.library.opcheck(torch.ops.spark.score.default, arguments)


def test_it_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(
        lambda x, s: score(2 * x, seed=s).entropy + 1, fullgraph=True, backend="aot_eager"
    )
    logits, seed = torch.randn(ROWS, VOCAB), torch.arange(ROWS)
    torch.testing.assert_close(compiled(logits, seed), score(2 * logits, seed=seed).entropy + 1)
