"""Chat: what is rendered turn by turn is the prefix of the whole conversation, always."""

from __future__ import annotations

from pathlib import Path

import bigram
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spark.rollout import Chat
from spark.rollout.chat import AGENT, APPEND_ONLY, command_of

# as the templates of reasoning models do
STRIPS_REASONING = APPEND_ONLY.replace(
    "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"
)
NUMBERS_TURNS = APPEND_ONLY.replace("{{ m['role'] }}", "{{ m['role'] }} {{ messages | length }}")
# as Llama 3's template does
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)


def test_a_template_is_a_file_or_its_source(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(APPEND_ONLY)
    told = Chat(byte_level(None), template=APPEND_ONLY).prompt("A room.")
    assert Chat(byte_level(None), template=str(file)).prompt("A room.") == told
    for nothing in (str(tmp_path / "chat.jinja"), str(tmp_path), "append-only", ""):
        with pytest.raises(ValueError, match="no Jinja source and no file") as error:
            Chat(byte_level(None), template=nothing)
        assert repr(nothing) in str(error.value) and "append_only" in str(error.value)


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes, with the special tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|h|>", "<|/h|>", "<|eot|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


DECISION = "<think> maybe </think> <action> go left </action>"


@pytest.mark.parametrize("template", [APPEND_ONLY, HEADERS])
@pytest.mark.parametrize("system", [None, "Be brief.", "agent"])
def test_turn_by_turn_equals_the_whole(template: str, system: str | None) -> None:
    tokenizer = byte_level(template)
    chat = Chat(tokenizer, system=system)
    tokens = chat.prompt("A room.")
    messages = [{"role": "user", "content": "A room."}]
    if system:
        told = AGENT if system == "agent" else system
        messages.insert(0, {"role": "system", "content": told})
    for observation in ("A door.", "Nothing happens. <|odd|> {{ braces }}"):
        tokens += chat.encode(DECISION)
        tokens += chat.reply(observation)
        messages += [
            {"role": "assistant", "content": DECISION},
            {"role": "user", "content": observation},
        ]
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert chat.decode(tokens) == whole
        assert tokens == tokenizer.encode(whole, add_special_tokens=False)


def test_word_level_tokenizer() -> None:
    chat = Chat(bigram.tokenizer())
    tokens = chat.prompt("you are in room 1 .") + chat.encode(DECISION) + chat.reply("a dead end")
    assert chat.decode(tokens) == (
        "<user> you are in room 1 . <end> <assistant> <think> <unk> </think> <action> go left "
        "</action> <end> <user> a dead end <end> <assistant>"
    )


def test_a_sampled_end_of_turn_is_not_repeated() -> None:
    chat = Chat(bigram.tokenizer())
    end = bigram.tokenizer().eos_token_id
    assert chat.stop_token_ids == (end,)
    plain = chat.reply("a dead end", after=chat.encode("look"))
    assert plain[0] == end
    assert chat.reply("a dead end", after=[*chat.encode("look"), end]) == plain[1:]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (STRIPS_REASONING, "rewrites earlier turns"),
        (NUMBERS_TURNS, "rewrites earlier turns|renders a turn differently"),
        (None, "no chat template"),
    ],
)
def test_unsuitable_templates_are_refused_and_the_fix_works(
    template: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        Chat(byte_level(template))
    assert 'template="append_only"' in str(error.value)
    chat = Chat(byte_level(template), template="append_only")
    assert chat.decode(chat.prompt("A room.")).endswith("<|im_start|>assistant\n")
    assert Chat(byte_level(template), template=HEADERS)


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ("{{ raise_exception('no system role') }}", r"fails \(no system role\)"),
        ("", "leaves the system prompt out"),
    ],
)
def test_a_template_without_system_prompts_is_refused_one(start: str, complaint: str) -> None:
    turns = "{% for m in messages if m['role'] != 'system' %}"
    rest = HEADERS.replace("{% for m in messages %}", turns)
    assert rest != HEADERS
    told = "{% if messages[0]['role'] == 'system' %}" + start + "{% endif %}"
    tokenizer = byte_level(told + rest)
    assert Chat(tokenizer)
    with pytest.raises(ValueError, match=complaint):
        Chat(tokenizer, system="agent")
    assert Chat(tokenizer, template="append_only", system="agent")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("<action> go  to\ndesk 1 </action>", "go to desk 1"),
        ("<action>look</action> <action>wait</action>", "look"),
        ("<action> look", None),
        ("look </action>", None),
        ("<action> </action>", None),
    ],
)
def test_command_of(text: str, command: str | None) -> None:
    assert command_of(text) == command
