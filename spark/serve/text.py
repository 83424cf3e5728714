"""A leaf's text as it grows: no half characters, no special tokens, no stop strings."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable

from spark.engines.text import TokenBytes

Utf8 = getincrementaldecoder("utf-8")


class LeafText:
    """Turns one leaf's tokens into text piece by piece; the pieces joined are its whole text."""

    def __init__(
        self, text: TokenBytes, *, hidden: frozenset[int], cut: Iterable[str] = ()
    ) -> None:
        """`hidden` tokens add no text; of the string of `cut` that ends the leaf, and what
        follows, nothing is shown.
        """
        self._text, self._hidden, self._cut = text, hidden, tuple(cut)
        self._decoder = Utf8("replace")
        self._kept = max((len(string) for string in self._cut), default=1) - 1
        self._pending = ""
        self._last = 0
        """Where the last token's text begins in `_pending`."""

    def feed(self, tokens: Iterable[int]) -> str:
        """Return the text that `tokens` add, as far as no stop string can begin in it."""
        for token in tokens:
            self._last = len(self._pending)
            if token not in self._hidden:
                self._pending += self._decoder.decode(self._text[token])
        sure = len(self._pending) - self._kept
        if sure <= 0 or self._stop() is not None:
            return ""
        shown, self._pending = self._pending[:sure], self._pending[sure:]
        self._last = max(0, self._last - sure)
        return shown

    def end(self) -> str:
        """Return the rest of the text."""
        self._pending += self._decoder.decode(b"", True)
        return self._pending[: self._stop()]

    def _stop(self) -> int | None:
        """Return where a stop string begins that the last token completes; an earlier one, as
        before `min_tokens`, ended nothing.
        """
        first = [self._pending.find(s, max(0, self._last - len(s) + 1)) for s in self._cut]
        return min((at for at in first if at >= 0), default=None)
