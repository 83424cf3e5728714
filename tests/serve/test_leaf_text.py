"""A leaf's text, token by token: whole characters, and what of stop strings is shown."""

from __future__ import annotations

from typing import Any

import pytest

from spark.serve.text import LeafText

PIECES = {0: b"one", 1: b"\n", 2: b" two", 3: b".\n\n", 4: b"\xc3", 5: b"\xa9", 6: b"</a", 7: b">!"}


def leaf(*cut: str, hidden: frozenset[int] = frozenset()) -> LeafText:
    pieces: Any = PIECES
    return LeafText(pieces, hidden=hidden, cut=cut)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("cut", "tokens", "text"),
    [
        ((), [0, 1, 2], "one\n two"),
        (("\n",), [0, 2, 1], "one two"),
        # one that ended nothing, as before min_tokens
        (("\n",), [0, 1, 2, 0], "one\n twoone"),
        (("\n",), [0, 1, 2, 1], "one\n two"),
        (("</a>",), [0, 6, 7], "one"),
        (("</a>", "ne"), [0, 6, 2], "one</a two"),
        (("\n", ".\n"), [0, 3], "one"),
        (("x",), [4, 5], "é"),
        (("x",), [0, 4], "one�"),
    ],
)
def test_pieces_are_the_whole(
    cut: tuple[str, ...], tokens: list[int], text: str, at_once: bool
) -> None:
    told = leaf(*cut)
    fed = [told.feed(tokens)] if at_once else [told.feed([token]) for token in tokens]
    assert "".join(fed) + told.end() == text


def test_hidden_tokens_end_no_string() -> None:
    told = leaf("\n", hidden=frozenset({9}))
    assert told.feed([0, 1]) + told.feed([2, 9]) + told.end() == "one\n two"
