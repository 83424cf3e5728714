"""The constraint: each walk through it is an admissible command, each command can be walked."""

from __future__ import annotations

import random

import bigram
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_chat import byte_level
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spark.rollout import Chat
from spark.rollout.chat import APPEND_ONLY, command_of
from spark.rollout.constraint import ActionTrie

COMMANDS = ("go left", "go right", "go back", "take key", "look")


def trained_bpe() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with merges across letters, digits and spaces, as real ones have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [f"<think> so </think> <action> {command} </action>" for command in COMMANDS] * 20
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=APPEND_ONLY)


CHATS = {
    "words": Chat(bigram.tokenizer()),
    "bytes": Chat(byte_level(APPEND_ONLY)),
    "bpe": Chat(trained_bpe()),
}


def walk(chat: Chat, commands: tuple[str, ...], seed: int, lead: str) -> str:
    """Write `lead` freely, then follow random allowed tokens to the end; return the text."""
    choose = random.Random(seed)
    constraint = ActionTrie(chat).constraint(commands)
    generated: list[int] = []
    for token in chat.encode(lead):
        assert constraint.allowed(generated) is None
        generated.append(token)
    while allowed := constraint.allowed(generated):
        assert len(set(allowed)) == len(allowed)
        generated.append(choose.choice(allowed))
    return chat.decode(generated)


@given(
    kind=st.sampled_from(sorted(CHATS)),
    commands=st.sets(st.sampled_from(COMMANDS), min_size=1).map(sorted).map(tuple),
    seed=st.integers(0, 99),
    lead=st.sampled_from(["<action>", "<think> go </think> <action>", "<explore> find <action>"]),
)
def test_walks_are_commands(kind: str, commands: tuple[str, ...], seed: int, lead: str) -> None:
    text = walk(CHATS[kind], commands, seed, lead)
    assert command_of(text) in commands
    assert text.endswith("</action>")


@pytest.mark.parametrize("kind", CHATS)
def test_every_command_can_be_reached(kind: str) -> None:
    seen = {command_of(walk(CHATS[kind], COMMANDS, seed, "<action>")) for seed in range(80)}
    assert seen == set(COMMANDS)


@pytest.mark.parametrize("kind", CHATS)
def test_a_fork_inside_a_command_goes_on_where_it_was(kind: str) -> None:
    chat, trie = CHATS[kind], ActionTrie(CHATS[kind])
    decision = chat.encode("<action> go left </action>")
    whole = trie.constraint(COMMANDS)
    for cut in range(len(decision)):
        rest = trie.constraint(COMMANDS, before=decision[:cut])
        assert rest.allowed([]) == whole.allowed(decision[:cut])


def test_space_between_tag_and_command_is_free() -> None:
    chat = CHATS["bytes"]
    constraint = ActionTrie(chat).constraint(COMMANDS)
    assert constraint.allowed(chat.encode("<think> <action")) is None
    assert constraint.allowed(chat.encode("<think> <action>")) == chat.encode(" ")


def test_after_the_command_everything_is_free() -> None:
    chat = CHATS["words"]
    constraint = ActionTrie(chat).constraint(COMMANDS)
    assert constraint.allowed(chat.encode("<action> look </action>")) is None
    assert constraint.allowed(chat.encode("<action> look </action> <end>")) is None


def test_excluded_commands_are_left_out_unless_nothing_else_remains() -> None:
    chat = CHATS["words"]
    trie = ActionTrie(chat, exclude=("look", "go"))
    opening = chat.encode("<action>")
    assert trie.constraint(COMMANDS).allowed(opening) == chat.encode("take")
    assert trie.constraint(("look", "go left")).allowed(opening) == chat.encode("look go")


def test_commands_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot write the command 'go to shelf 1'"):
        ActionTrie(CHATS["words"]).constraint(("go to shelf 1",))
    with pytest.warns(UserWarning, match="cannot write 'go to shelf 1': the policy goes without"):
        constraint = ActionTrie(CHATS["words"]).constraint(("go to shelf 1", "look"))
    opening = CHATS["words"].encode("<action>")
    assert constraint.allowed(opening) == CHATS["words"].encode("look")


def test_a_tokenizer_that_melts_tag_and_command_is_refused() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    backend.train_from_iterator(["<action> look </action>"] * 50, trainer)
    chat = Chat(PreTrainedTokenizerFast(tokenizer_object=backend), template="append_only")
    with pytest.raises(ValueError, match="constrain=False"):
        ActionTrie(chat).constraint(("look",))
