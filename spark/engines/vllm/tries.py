"""Actions limited to known token sequences, as one of vLLM's grammars.

`StructuredOutputManager._create_grammar` makes it for a request whose branch has a constraint; the
rest of the way (bitmask per step, tokens accepted one by one) is that of vLLM's own grammars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from spark.engines.text import TokenBytes
from spark.engines.vllm.branch import branch_of
from spark.engines.vllm.hooks import around

TAIL = 128
"""Bytes of the text kept to look for the opening tag."""

# token id -> what may follow; an empty dictionary ends a choice
Trie = dict[int, Any]


class TrieGrammar(StructuredOutputGrammar):
    """Behind an opening tag only some sequences may follow; elsewhere everything may."""

    def __init__(
        self,
        text: TokenBytes,
        *,
        opening: str,
        choices: Iterable[Sequence[int]],
        before: Sequence[int] = (),
    ) -> None:
        """`before`: tokens of the decision that were sampled earlier."""
        self._text, self._opening = text, opening.encode()
        self._trie: Trie = {}
        for choice in choices:
            cursor = self._trie
            for token in choice:
                cursor = cursor.setdefault(token, {})
        self._cursor: Trie | None = None
        self._tail = b""
        self.accept_tokens("", list(before))

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Go on by `tokens`; False when one of them may not follow."""
        for token in tokens:
            if self._cursor:
                if token not in self._cursor:
                    return False
                self._cursor = self._cursor[token]
            elif self._cursor is None and self._opens(token):
                self._cursor = self._trie
        return True

    def fill_bitmask(self, bitmask: Tensor, batch_index: int) -> None:
        """Write what may follow into row `batch_index` of int32 [rows, ceil(V / 32)]."""
        row = bitmask[batch_index]
        if not self._cursor:
            row.fill_(-1)
            return
        row.zero_()
        ids = np.fromiter(self._cursor, dtype=np.int64)
        words = row.numpy().view(np.uint32)
        np.bitwise_or.at(words, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))

    def is_terminated(self) -> bool:
        """Return False: what follows an action is free."""
        return False

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """Only speculative decoding asks, which does not go with branching."""
        raise NotImplementedError

    def rollback(self, num_tokens: int) -> None:
        """Only speculative decoding asks, which does not go with branching."""
        raise NotImplementedError

    def reset(self) -> None:
        """Start again."""
        self._cursor, self._tail = None, b""

    def _opens(self, token: int) -> bool:
        """Return whether `token` completes the opening tag; blanks may follow in it."""
        piece = self._text[token]
        self._tail = (self._tail + piece)[-TAIL:]
        return self._opening[-1:] in piece and self._tail.rstrip().endswith(self._opening)


@around(StructuredOutputManager, "_create_grammar")
def create_grammar(original: Any, self: Any, request: Any) -> StructuredOutputGrammar:
    """Replace vLLM's method for requests with a constraint of ours."""
    branch = branch_of(request.sampling_params)
    if branch is None or branch.constraint is None:
        return original(self, request)
    if not hasattr(self, "spark_text"):
        self.spark_text = TokenBytes(self.tokenizer)
    return TrieGrammar(self.spark_text, **branch.constraint)
