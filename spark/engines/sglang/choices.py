"""Constraints that come as data: behind an opening tag, one of some token sequences.

They take part in SGLang's grammar machinery, so that masks are filled and tokens agreed upon by
all ranks as for any grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spark.engines.sglang.hooks import Hook

Trie = dict[int, Any]


def make_grammar(wire: Mapping[str, Any], tokenizer: Any, vocab_size: int) -> Any:
    """Return SGLang's grammar object for {"opening": tag, "choices": [[ids]], "before": [ids]}.

    `before` are the tokens of the decision so far, those that a fork starts with included.

    Raises:
        ValueError: a field is missing or a token is outside the vocabulary.
    """
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

    opening, choices, before = _checked(wire, vocab_size)

    class Choices(BaseGrammarObject):
        """Walks the trie of the choices along one decision."""

        is_spark = True

        def __init__(self) -> None:
            super().__init__()
            self._trie = make_trie(choices)
            self._decision: list[int] = []
            self._cursor: Trie | None = None
            for token in before:
                self.accept_token(token)

        def accept_token(self, token: int) -> None:
            self._decision.append(token)
            if self._cursor is None:
                self._cursor = self._trie if self._opens() else None
            else:
                self._cursor = self._cursor.get(token, {})

        def _opens(self) -> bool:
            text = tokenizer.decode(
                self._decision, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return str(text).rstrip().endswith(opening)

        def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: Any) -> Tensor:
            return torch.full((batch_size, -(-vocab_size // 32)), -1, dtype=torch.int32)

        def fill_vocab_mask(self, vocab_mask: Tensor, idx: int) -> None:
            if not self._cursor:
                return
            forbids = vocab_mask.dtype == torch.bool
            width = vocab_mask.shape[1] * (1 if forbids else 32)
            allowed = torch.zeros(1, width, dtype=torch.bool)
            allowed[0, list(self._cursor)] = True
            # beside outlines the mask is its own
            row = ~allowed if forbids else pack(allowed)
            vocab_mask[idx] = row[0].to(vocab_mask.device)

        @staticmethod
        def reset_vocab_mask(vocab_mask: Tensor) -> None:
            vocab_mask.fill_(-1)

        @staticmethod
        def move_vocab_mask(vocab_mask: Tensor, device: Any) -> Tensor:
            return vocab_mask.to(device, non_blocking=True)

        @staticmethod
        def apply_vocab_mask(logits: Tensor, vocab_mask: Tensor) -> None:
            shifts = torch.arange(32, device=logits.device)
            allowed = (vocab_mask[:, :, None] >> shifts) & 1
            allowed = allowed.flatten(1)[:, : logits.shape[1]].bool()
            logits.masked_fill_(~allowed, float("-inf"))

    return Choices()


def make_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """Return token id -> what may follow; an empty dictionary ends a choice."""
    trie: Trie = {}
    for sequence in sequences:
        cursor = trie
        for token in sequence:
            cursor = cursor.setdefault(token, {})
    return trie


def pack(allowed: Tensor) -> Tensor:
    """Return bool [B, V] as int32 [B, ceil(V / 32)]: bit v % 32 of word v // 32."""
    bits = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).view(len(allowed), -1, 32)
    # the sum of bit 31 needs 64 bits; the cast wraps it to the sign
    return (bits << torch.arange(32, device=bits.device)).sum(2).to(torch.int32)


def on_masks(original: Callable[[Any], None], info: Any) -> None:
    """A batch's masks are filled: a compiled grammar fills its own kind only."""
    grammars = info.grammars or []
    ours = {row: g for row, g in enumerate(grammars) if getattr(g, "is_spark", False)}
    others = sum(grammar is not None for grammar in grammars) - len(ours)
    if not ours or not others:
        return original(info)
    info.grammars = [None if row in ours else grammar for row, grammar in enumerate(grammars)]
    original(info)
    info.grammars = grammars
    for row, grammar in ours.items():
        grammar.fill_vocab_mask(info.grammar_mask.vocab_mask, row)


def _checked(wire: Mapping[str, Any], vocab_size: int) -> tuple[str, list[list[int]], list[int]]:
    if not isinstance(wire, Mapping) or set(wire) - {"opening", "choices", "before"}:
        raise ValueError("spark.choices must have the fields opening, choices and before")
    opening, choices, before = wire.get("opening"), wire.get("choices"), wire.get("before", [])
    if not isinstance(opening, str) or not opening:
        raise ValueError(f"spark.choices.opening must be a tag, got {opening!r}")
    if not choices or not all(choices):
        raise ValueError("spark.choices.choices must be non-empty lists of token ids")
    for token in (*before, *(token for choice in choices for token in choice)):
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ValueError(f"spark.choices has token {token!r} outside [0, {vocab_size})")
    return opening, choices, before


HOOK = Hook(
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.update_regex_vocab_mask",
    "around",
    on_masks,
)
