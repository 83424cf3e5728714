"""Messages to tokens: a conversation, or one more turn behind tokens that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from spark.rollout.chat import template_source
from spark.serve.protocol import RequestError, characters

_QUESTION = [{"role": "user", "content": "one"}]
_ANSWER = "@answer@"


class ChatFormat:
    """A tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """`template`: see `template_source`, which raises ValueError. `defaults`: variables of it
        that a request may say otherwise.
        """
        self._tokenizer: Any = tokenizer
        self._template = template_source(template)
        self._defaults = dict(defaults or {})

    def prompt(self, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
        """Return the tokens up to where the model answers `messages`."""
        return self._encode(self._render(messages, variables))

    def turn(
        self, messages: Sequence[dict[str, Any]], after: Sequence[int], **variables: Any
    ) -> list[int]:
        """Return the tokens between an answer that ends in `after` and the next one.

        Raises RequestError when the template rewrites earlier turns, so that no tokens added
        behind the answer could give what it renders.
        """
        before = self._render(_QUESTION, variables) + _ANSWER
        answered = [*_QUESTION, {"role": "assistant", "content": _ANSWER}]
        whole = self._render([*answered, *messages], variables)
        if not whole.startswith(before):
            raise RequestError(
                "the chat template rewrites earlier turns, so a leaf cannot be continued by "
                "messages: continue it on /v1/completions with token ids, or serve the model with "
                "--chat_template append_only",
                param="messages",
            )
        tokens = self._encode(whole[len(before) :])
        # an answer that has its end-of-turn token must not get a second one
        closed = bool(after) and tokens[:1] == [after[-1]]
        return tokens[closed:]

    def _render(self, messages: Sequence[dict[str, Any]], variables: dict[str, Any]) -> str:
        if self._template is None and not self._tokenizer.chat_template:
            raise RequestError(
                "this model has no chat template: use /v1/completions, or serve it with "
                "--chat_template append_only",
                param="messages",
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self._template,
                    add_generation_prompt=True,
                    tokenize=False,
                    **(self._defaults | variables),
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(
                f"the chat template refuses the messages: {error}", param="messages"
            ) from None

    def _encode(self, text: str) -> list[int]:
        try:
            characters(text)
        except ValueError as error:
            raise RequestError(f"messages: {error}", param="messages") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False))
