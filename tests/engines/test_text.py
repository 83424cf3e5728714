"""Token bytes and stop strings against plain text, for the three kinds of tokenizers."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spark.engines.text import Matcher, TokenBytes

CORPUS = ["go to desk 1 <action> take key </action>", "look; </explore> the naïve key – ключ 🔑"]


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a small tokenizer trained on `CORPUS`."""
    special = ["<|end|>", "[UNK]"]
    if kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "sentencepiece":
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special = special + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(
            vocab_size=90, special_tokens=special, show_progress=False
        )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "wordpiece"])
@pytest.mark.parametrize("text", CORPUS)
def test_bytes_of_the_tokens_make_the_text(kind: str, text: str) -> None:
    tok = tokenizer(kind)
    ids = tok.encode(text, add_special_tokens=False)
    joined = b"".join(TokenBytes(tok)[i] for i in ids)
    assert joined.decode().strip() == tok.decode(ids).strip()
    assert len(ids) > 5


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_byte_level_tokens_carry_any_text(text: str) -> None:
    tok = tokenizer("byte-level")
    bytes_of = TokenBytes(tok)
    ids = tok.encode(text, add_special_tokens=False)
    assert b"".join(bytes_of[i] for i in ids) == text.encode()


def test_special_and_unknown_ids() -> None:
    tok = tokenizer("byte-level")
    bytes_of = TokenBytes(tok)
    assert bytes_of[tok.convert_tokens_to_ids("<|end|>")] == b"<|end|>"
    assert bytes_of[len(tok) + 5] == b""


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab<>é", max_size=4), min_size=1, max_size=12),
    stops=st.lists(st.text("ab<>é", min_size=1, max_size=5), min_size=1, max_size=3),
    split=st.integers(0, 11),
)
def test_a_match_ends_in_the_token_that_completes_it(
    pieces: list[str], stops: list[str], split: int
) -> None:
    encoded = [piece.encode() for piece in pieces]
    recent = list(range(min(split, len(pieces))))[::-1]
    matcher = Matcher(stops, encoded, recent)
    for i in range(len(recent), len(pieces)):
        before, after = "".join(pieces[:i]), "".join(pieces[: i + 1])
        completed = [s for s in stops if _ends_after(s, after, len(before))]
        assert matcher.feed(i) == (completed[0] if completed else None)


def _ends_after(part: str, text: str, border: int) -> bool:
    """Return whether `part` occurs in `text` with its end beyond `border`."""
    starts = (i for i in range(len(text)) if text.startswith(part, i))
    return any(start + len(part) > border for start in starts)
