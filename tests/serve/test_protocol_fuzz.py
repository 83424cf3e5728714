"""Whatever is sent, a server answers in OpenAI's format, holds nothing, and goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import local_server
from tiny_models import prompt

from spark.serve.protocol import Branching, RequestError, parse_branching

FIELDS = sorted(field.alias or name for name, field in Branching.model_fields.items())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["spark", "entropy", "none", "<go>", "tree-0", "", "fixed"])
    | st.text(max_size=5)
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.text(max_size=4), inner, max_size=3)
    return st.lists(inner, max_size=4) | objects


JSON = st.recursive(SCALARS, nested, max_leaves=6)
BRANCHING = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4) | JSON
BODY_FIELDS = [
    "prompt",
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "logprobs",
    "stream_options",
    "return_token_ids",
    "model",
    "ignore_eos",
    "logit_bias",
    "messages",
    "tools",
    "user",
]
BODY = st.dictionaries(st.sampled_from(BODY_FIELDS), JSON, max_size=4)


@given(record=BRANCHING)
@settings(max_examples=300, deadline=None)
def test_a_branching_object_is_taken_or_refused_by_name(record: Any) -> None:
    try:
        branching = parse_branching(record)
        branching.check()
        branching.rule(branching.policy or "spark")
    except RequestError as error:
        assert error.param is not None and error.param.startswith("branching")
        assert error.status == 400 and str(error)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_server(app={"chat_template": "append_only"}, max_leaves=8) as url:
        yield url


@given(body=BODY, branching=BRANCHING, chat=st.booleans())
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_body_gets_an_answer(url: str, body: Any, branching: Any, chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    start = {"messages": [{"role": "user", "content": "go"}]} if chat else {"prompt": prompt(5)}
    record = {**start, "max_tokens": 6, "branching": branching, **body}

    async def check() -> None:
        async with Client(url) as client:
            async with client.session.post(url + path, json=record) as answer:
                text = await answer.text()
            assert answer.status in (200, 400, 404), text
            if answer.status != 200:
                error = json.loads(text)["error"]
                assert error["message"] and error["code"] == answer.status
            elif record.get("stream"):
                assert text.endswith("data: [DONE]\n\n") and '"error"' not in text
            else:
                assert ("branching" in json.loads(text)) == (record["branching"] is not None)
            assert (await client.metrics())["spark:leaves_reserved"] == 0

    asyncio.run(check())
