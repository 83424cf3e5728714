"""Bitmasks of allowed tokens as `score` and the grammar back ends of vLLM use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BITS = 32


def pack(allowed: Tensor) -> Tensor:
    """Return bool [B, V] as int32 [B, ceil(V / 32)]: bit v % 32 of word v // 32."""
    rows, vocab = allowed.shape
    words = -(-vocab // BITS)
    padded = torch.nn.functional.pad(allowed, (0, words * BITS - vocab)).view(rows, words, BITS)
    weights = 1 << torch.arange(BITS, device=allowed.device, dtype=torch.int64)
    # the sum of bit 31 needs 64 bits; the cast wraps it to the sign
    return (padded * weights).sum(-1).to(torch.int32)


def unpack(words: Tensor, vocab: int) -> Tensor:
    """Return int32 [B, ceil(V / 32)] as bool [B, V]."""
    bits = torch.arange(BITS, device=words.device, dtype=torch.int32)
    return ((words[:, :, None] >> bits) & 1).flatten(1)[:, :vocab].bool()


def obey(logits: Tensor, grammar: Tensor | None, min_p: Tensor | None) -> Tensor:
    """Return logits [B, V] with -inf where the grammar forbids a token of a row that uses min-p.

    Other rows keep theirs, so that scores do not depend on the company; `min_p` is [B] or None.
    """
    if grammar is None or min_p is None:
        return logits
    return logits.masked_fill(~unpack(grammar, logits.shape[1]) & (min_p > 0)[:, None], -torch.inf)


def grammar_words(rows: Sequence[str], names: Sequence[str], bitmask: np.ndarray) -> Tensor:
    """Return the grammars' bitmasks int32 [B, words] in the order of the batch `rows`.

    `bitmask` has a row for each request in `names`; requests without a grammar may take any token.
    """
    given = torch.from_numpy(bitmask)
    words = torch.full((len(rows), given.shape[1]), -1, dtype=torch.int32)
    place = {name: row for row, name in enumerate(names)}
    for row, name in enumerate(rows):
        if name in place:
            words[row] = given[place[name]]
    return words
