"""What of a chat's messages the template gets to see."""

from __future__ import annotations

from typing import Any

import pytest

from spark.serve.chat import ChatFormat
from spark.serve.openai import Message, plain
from spark.serve.protocol import RequestError


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "find", "arguments": arguments}}


@pytest.mark.parametrize(
    ("given", "want"), [('{"city": "Bonn"}', {"city": "Bonn"}), ("", {}), ({"a": 1}, {"a": 1})]
)
def test_arguments_of_tool_calls_become_objects(given: Any, want: Any) -> None:
    """OpenAI sends JSON in a string; templates write them as JSON by themselves."""
    message = Message(role="assistant", content=None, tool_calls=[call(given)])
    assert plain(0, message)["tool_calls"] == [call(want)]


@pytest.mark.parametrize(
    ("calls", "field"),
    [
        ([call("{}"), call("{city")], "messages.3.tool_calls.1.function.arguments"),
        ([{"name": "find"}], "messages.3.tool_calls.0"),
        (["find"], "messages.3.tool_calls.0"),
        ("find", "messages.3.tool_calls"),
    ],
)
def test_tool_calls_that_cannot_be_read_are_named(calls: Any, field: str) -> None:
    with pytest.raises(RequestError) as error:
        plain(3, Message(role="assistant", content="", tool_calls=calls))
    assert error.value.param == field


class Recorder:
    """A tokenizer that writes down what its template is given."""

    chat_template = "there is one"

    def apply_chat_template(self, messages: Any, **given: Any) -> str:
        return f"{given['thinking']} {given['tone']}"

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())


def test_a_request_may_say_otherwise_what_its_server_says_of_the_template() -> None:
    tokenizer: Any = Recorder()
    chat = ChatFormat(tokenizer, None, {"thinking": False, "tone": "calm"})
    assert bytes(chat.prompt([{"role": "user", "content": "x"}])) == b"False calm"
    assert bytes(chat.prompt([], thinking=True)) == b"True calm"
