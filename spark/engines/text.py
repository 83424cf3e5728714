"""Which bytes a token stands for, and when a stream of tokens completes a string."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes every token adds to the text, found when first asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = b"" if backend is None else _state(backend.decoder)
        self._byte_level = b'"ByteLevel"' in decoder
        self._byte_fallback = b'"ByteFallback"' in decoder
        self._byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
        self._added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = (
            self._tokenizer.convert_ids_to_tokens(token) if token < len(self._tokenizer) else None
        )
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(self._byte_of[char] for char in piece)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        # decoded behind another token, because decoders drop the space in front of the first one
        alone, both = self._decode(self._anchor), self._decode([*self._anchor, token])
        return both.removeprefix(alone).encode()

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


class Matcher:
    """Tells which of some strings is completed by the next token, across token borders."""

    def __init__(self, strings: Iterable[str], text: TokenBytes, recent: Iterable[int]) -> None:
        """`recent` are the tokens just before the stream, newest first."""
        self._patterns = [(string, string.encode()) for string in strings]
        self._text = text
        self._keep = max(len(pattern) for _, pattern in self._patterns) - 1
        tail = b""
        for token in recent:
            if len(tail) >= self._keep:
                break
            tail = text[token] + tail
        self._tail = tail

    def feed(self, token: int) -> str | None:
        """Return the first string that `token` completes."""
        known = len(self._tail)
        seen = self._tail + self._text[token]
        self._tail = seen[max(0, len(seen) - self._keep) :]
        for string, pattern in self._patterns:
            if seen.find(pattern, max(0, known - len(pattern) + 1)) >= 0:
                return string
        return None


def _state(decoder: Any) -> bytes:
    """Return the JSON of a `tokenizers` decoder."""
    return b"" if decoder is None else bytes(decoder.__getstate__())
