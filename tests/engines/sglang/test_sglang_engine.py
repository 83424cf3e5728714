"""SGLang as an engine, over HTTP and in this process: the engine protocol, new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from behaviour import GREEDY, REMOTE, Subject, run
from offline import CONTEXT, SETTINGS
from own_process import Server
from tiny_models import VOCAB, greedy, prompt, tiny, tokenizer

from spark.engines.base import Engine
from spark.engines.served import ServedEngine
from spark.engines.sglang.client import SGLangEngine
from spark.serve.sglang.engine import EmbeddedSGLang

pytestmark = pytest.mark.sglang


@dataclass
class Form:
    """One way to reach SGLang."""

    runner: asyncio.Runner
    start: Callable[[], AbstractAsyncContextManager[Engine]]
    """Gives an engine whose counters are at 0."""
    publisher: Callable[[Path], Engine]
    """Takes a folder and gives an engine for new weights."""


@pytest.fixture(scope="module")
def embedded(models: dict[str, Path]) -> Iterator[Form]:
    async def load() -> EmbeddedSGLang:
        return EmbeddedSGLang(models["qwen3"], **SETTINGS, page_size=16)

    with asyncio.Runner() as runner:
        engine = runner.run(load())
        yield Form(runner, lambda: ServedEngine(engine.server), lambda _: engine)
        runner.run(engine.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[Form]:
    with asyncio.Runner() as runner:
        yield Form(
            runner,
            lambda: SGLangEngine(server.url),
            lambda _: SGLangEngine(server.url),
        )


@pytest.fixture(scope="module")
def folder(http: Form, server: Server) -> Form:
    """Over HTTP, with weights through a folder."""
    return replace(http, publisher=lambda folder: SGLangEngine(server.url, weights=folder))


@pytest.fixture(scope="module")
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.getfixturevalue(request.param)
    return found


both = pytest.mark.parametrize("form", ["http", "embedded"], indirect=True)


@both
@pytest.mark.parametrize("check", REMOTE, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Subject], Awaitable[None]], form: Form) -> None:
    subject = Subject(
        start=form.start,
        prompt=prompt,
        greedy=lambda tokens, new: greedy("qwen3", tokens, new),
        text=lambda tokens: tokenizer().decode(list(tokens)),
        context=CONTEXT - 2,
        block_size=16,
        vocab_size=VOCAB,
        recomputed=1,
    )
    form.runner.run(check(subject))


@both
def test_forks_compute_one_token_again(form: Form) -> None:
    tokens = prompt(19, 70)
    want = greedy("qwen3", tokens, 40)

    async def fork() -> None:
        async with form.start() as engine:
            seq = await engine.open(tokens)
            await engine.sample(seq, replace(GREEDY, max_tokens=20))
            before = engine.stats()["recomputed"]
            kids = [*await engine.fork(seq, 3), *await engine.fork(seq, 2, at=19 + 7)]
            outs = await asyncio.gather(*(engine.sample(kid, GREEDY) for kid in kids))
            (grandchild,) = await engine.fork(kids[0], 1)
            last = await engine.sample(grandchild, replace(GREEDY, max_tokens=8))
            assert [out.tokens for out in outs] == [want[20:32]] * 3 + [want[7:19]] * 2
            assert last.tokens == want[32:40]
            assert engine.stats()["recomputed"] - before <= 6
            assert engine.stats()["reused"] == 3 * 20 + 2 * 7 + 32

    form.runner.run(fork())


# the head's rows in reverse: the greedy token t becomes V - 1 - t
STATE = tiny("qwen3").state_dict()
OTHER = {**STATE, "lm_head.weight": STATE["lm_head.weight"].flip(0)}


@pytest.mark.parametrize("form", ["http", "folder", "embedded"], indirect=True)
def test_new_weights_are_sampled_with_and_named(form: Form, tmp_path: Path) -> None:
    tokens = prompt(14, 71)

    async def publish() -> None:
        engine = form.publisher(tmp_path)
        old = await run(engine, tokens, GREEDY)
        await engine.update_weights(OTHER, 3)
        new = await run(engine, tokens, GREEDY)
        await engine.update_weights(STATE, 4)
        back = await run(engine, tokens, GREEDY)
        assert old.tokens == back.tokens == greedy("qwen3", tokens, 12)
        assert new.tokens[0] == VOCAB - 1 - old.tokens[0]
        assert (new.weight_version, back.weight_version) == (3, 4)

    form.runner.run(publish())


@both
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"no.such.weight": STATE["lm_head.weight"]}, "no.such.weight"),
        ({"lm_head.weight": STATE["lm_head.weight"][:7]}, r"lm_head.weight.*\[7"),
    ],
)
def test_weights_that_do_not_fit_are_refused(form: Form, wrong: dict, message: str) -> None:
    async def refuse() -> None:
        engine = form.publisher(Path())
        with pytest.raises(ValueError, match=message):
            await engine.update_weights(wrong, 5)
        out = await run(engine, prompt(14, 71), GREEDY)
        assert out.tokens == greedy("qwen3", prompt(14, 71), 12)
        assert out.weight_version != 5

    form.runner.run(refuse())


@both
def test_a_sequence_outlives_its_weights(form: Form) -> None:
    """It goes on with the new ones: what it has is computed again."""
    tokens = prompt(21, 72)

    async def outlive() -> None:
        publisher = form.publisher(Path())
        async with form.start() as engine:
            seq = await engine.open(tokens)
            first = await engine.sample(seq, GREEDY)
            await publisher.update_weights(OTHER, 6)
            (kid,) = await engine.fork(seq, 1)
            other = await engine.sample(kid, replace(GREEDY, max_tokens=1))
            await publisher.update_weights(STATE, 7)
            before = engine.stats()["recomputed"]
            rest = await engine.sample(seq, GREEDY)
            again = engine.stats()["recomputed"] - before
            want = greedy("qwen3", tokens, 24)
            assert first.tokens + rest.tokens == want
            assert other.tokens == [VOCAB - 1 - want[12]]
            assert (other.weight_version, rest.weight_version) == (6, 7)
            assert again >= 21

    form.runner.run(outlive())
