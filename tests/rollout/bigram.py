"""A policy small enough to know by heart: words, and counts of which word follows which."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
DECISIONS = (
    "<assistant> <explore> find key </explore> <action> go left </action>",
    "<assistant> <explore> find key </explore> <action> go right </action>",
    "<assistant> <think> go on </think> <action> take key </action>",
    "<assistant> <think> go on </think> <action> go back </action>",
    "<assistant> <action> open door </action>",
    "<assistant> <action> look </action>",
)
WORDS = """
<unk> <end> <user> <system> <assistant> <think> </think> <explore> </explore> <action> </action>
find the key and open last door . you are in a dead end room there is nothing happens take go left
right back look on task three one two @observation@ 0 1 2 3 4 5 6 7 8 9 10 11 12
"""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with a chat template, as the cold start trains them."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS.split()))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        chat_template=TEMPLATE,
    )


@cache
def _counts() -> torch.Tensor:
    words = tokenizer()
    counts = torch.full((len(words), len(words)), 0.002)
    for decision in DECISIONS:
        ids = words.encode(decision)
        for left, right in pairwise(ids):
            counts[left, right] += 1.0
    return counts.log()


def next_logits(tokens: list[int]) -> torch.Tensor:
    """Return the log counts [V] of the words after the last token."""
    return _counts()[tokens[-1]]
