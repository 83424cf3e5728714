"""Append-only chat: each turn is rendered once, as tokens that follow those already there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ACTION_OPEN = "<action>"
ACTION_CLOSE = "</action>"

# ChatML without any rewriting of earlier turns
APPEND_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# for models that were not trained on the tags
AGENT = (
    "You act in a text environment, one command a turn, until your task is solved. In every turn "
    "think briefly, then give exactly one command and stop:\n"
    "<think> what this command is for </think> <action> command </action>\n"
    "Where you cannot tell which of several commands leads on, think in <explore> </explore> "
    "instead of <think> </think>: several ways will be tried from there."
)

REPLIES_KEPT = 4096
_REMEDY = 'pass another one, or Chat(tokenizer, template="append_only"): model.template in a recipe'
_OBSERVATION = "@observation@"
_DECISION = "<think> one </think> <action> two </action>"
_COMMAND = re.compile(f"{ACTION_OPEN}(.*?){ACTION_CLOSE}", re.DOTALL)


def command_of(text: str) -> str | None:
    """Return the command of the first complete `<action> ... </action>` in `text`, or None."""
    match = _COMMAND.search(text)
    return (" ".join(match.group(1).split()) or None) if match else None


def same_but_for_spaces(one: str, other: str) -> bool:
    """Return whether two commands are the same: tokens need not keep the spaces around signs."""
    return "".join(one.split()) == "".join(other.split())


def template_source(template: str | None) -> str | None:
    """Return the Jinja source of a chat template: None = the tokenizer's own, "append_only" =
    ChatML, a file, or the source itself.

    Raises ValueError for what can only be a path and cannot be read.
    """
    if template is None or set(template) & set("{\n"):
        return template
    if template == "append_only":
        return APPEND_ONLY
    try:
        return Path(template).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the chat template {template!r} is no Jinja source and no file that can be read "
            f'({error}): give one of them, or "append_only"'
        ) from error


class Chat:
    """Renders a conversation turn by turn with the model's chat template; nothing is re-tokenised.

    Raises ValueError when the template rewrites earlier turns (many strip the reasoning of past
    answers): then the tokens that were sampled would no longer be the conversation's prefix.

    Example:
        chat = Chat(AutoTokenizer.from_pretrained(path))
        prompt = chat.prompt("You are in a room ... Your task is to: put a pen in the shelf.")
        # ... sample a decision: [.., </action>]
        chat.reply("You arrive at desk 1.", after=decision)    # tokens to append
    """

    def __init__(
        self, tokenizer: Any, *, template: str | None = None, system: str | None = None
    ) -> None:
        """`template`: see `template_source`.

        `system`: the system prompt, "agent" = one that explains the tags, None = none.
        """
        self.tokenizer = tokenizer
        self._template = template_source(template)
        if self._template is None and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer has no chat template; {_REMEDY}")
        told = AGENT if system == "agent" else system
        self._system = [{"role": "system", "content": told}] if told else []
        if told and told.strip() not in self._render([_user("task")]):
            raise ValueError(f"the chat template leaves the system prompt out; {_REMEDY}")
        self._reply = self._reply_pattern()
        # leaves of one tree see the same answers again and again
        self._reply_tokens = lru_cache(REPLIES_KEPT)(self._encode_reply)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a decision besides `</action>`: the tokenizer's end of text."""
        end = self.tokenizer.eos_token_id
        return () if end is None else (int(end),)

    def prompt(self, observation: str) -> list[int]:
        """Return the tokens of the first observation, up to where the policy speaks."""
        return self.encode(self._render([_user(observation)]))

    def reply(self, observation: str, *, after: Sequence[int] = ()) -> list[int]:
        """Return the tokens that follow the decision `after`: its end, the answer, a new header."""
        tokens = self._reply_tokens(observation)
        # a decision that sampled the end-of-turn token itself must not get a second one
        closed = bool(after) and tokens[:1] == (after[-1],)
        return list(tokens[closed:])

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens added around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, tags and special tokens included."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _encode_reply(self, observation: str) -> tuple[int, ...]:
        return tuple(self.encode(self._reply.replace(_OBSERVATION, observation)))

    def _render(self, messages: list[dict[str, str]], header: bool = True) -> str:
        # a dependency of transformers, whose tokenizer renders with it
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    self._system + messages,
                    chat_template=self._template,
                    add_generation_prompt=header,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            # some know no system prompt, and say so
            raise ValueError(f"the chat template fails ({error}); {_REMEDY}") from error

    def _suffix(self, history: list[dict[str, str]], observation: str) -> str:
        """Return what the template puts after `history` and the decision `_DECISION`."""
        before = self._render(history) + _DECISION
        after = self._render([*history, _assistant(_DECISION), _user(observation)])
        if not after.startswith(before):
            raise ValueError(
                "the chat template rewrites earlier turns (it may strip their reasoning), so "
                f"sampled tokens could not stay in place; {_REMEDY}"
            )
        return after[len(before) :]

    def _reply_pattern(self) -> str:
        """Return the text after any decision, with `_OBSERVATION` where the answer stands."""
        first = [_user("task")]
        second = [*first, _assistant(_DECISION), _user("three")]
        pattern = self._suffix(first, _OBSERVATION)
        if pattern != self._suffix(second, _OBSERVATION) or pattern.count(_OBSERVATION) != 1:
            raise ValueError(
                f"the chat template renders a turn differently later in the conversation; {_REMEDY}"
            )
        return pattern


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
