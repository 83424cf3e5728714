"""What every engine must do: checks that take a `Subject`, so that each engine's tests run them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import pytest

from spark.core import Watch
from spark.engines.base import Engine, Sample, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
RANDOM = SamplingParams(max_tokens=12, temperature=0.9, top_k=20, top_p=0.95, seed=11)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine under test and the truth to hold it against."""

    start: Callable[[], AbstractAsyncContextManager[Engine]]
    prompt: Callable[[int, int], list[int]]
    """(length, seed) -> token ids."""
    greedy: Callable[[list[int], int], list[int]]
    """(tokens, new) -> the greedy continuation."""
    text: Callable[[Sequence[int]], str]
    context: int
    block_size: int
    vocab_size: int
    recomputed: int = 0
    """Most tokens that a call of `sample` may compute again."""


class Only:
    """Allows the same ids everywhere but at the offsets in `free`."""

    def __init__(self, ids: list[int], free: tuple[int, ...] = ()) -> None:
        self.ids, self.free = ids, free

    def allowed(self, generated: Sequence[int]) -> list[int] | None:
        return None if len(generated) in self.free else self.ids


async def run(engine: Engine, tokens: list[int], params: SamplingParams) -> Sample:
    """Sample after `tokens` and release the sequence."""
    seq = await engine.open(tokens)
    try:
        return await engine.sample(seq, params)
    finally:
        await engine.release(seq)


async def greedy_alone_and_among_strangers(subject: Subject) -> None:
    lengths = [1, 3, subject.block_size, subject.block_size + 1, 40]
    prompts = [subject.prompt(n, 1) for n in lengths]
    want = [subject.greedy(tokens, 12) for tokens in prompts]
    async with subject.start() as engine:
        alone = [await run(engine, tokens, GREEDY) for tokens in prompts]
        together = await asyncio.gather(*(run(engine, tokens, GREEDY) for tokens in prompts))
    assert [sample.tokens for sample in alone] == want
    assert [sample.tokens for sample in together] == want
    assert all(sample.finish_reason == "length" for sample in alone)


async def extend_continues_the_sequence(subject: Subject) -> None:
    first, second = subject.prompt(9, 2), subject.prompt(13, 3)
    async with subject.start() as engine:
        seq = await engine.open(first)
        out = await engine.sample(seq, GREEDY)
        await engine.extend(seq, second)
        again = await engine.sample(seq, GREEDY)
        assert engine.length(seq) == 9 + 12 + 13 + 12
    assert again.tokens == subject.greedy([*first, *out.tokens, *second], 12)


async def forks_of_forks_continue_exactly(subject: Subject) -> None:
    tokens = subject.prompt(subject.block_size - 2, 4)
    want = subject.greedy(tokens, 24)
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        await engine.sample(seq, GREEDY)
        for at in range(len(tokens) + 1, len(tokens) + 12):
            done = at - len(tokens)
            child, sister = await engine.fork(seq, 2, at=at)
            short = await engine.sample(child, replace(GREEDY, max_tokens=3))
            (grandchild,) = await engine.fork(child, 1)
            outs = await asyncio.gather(
                engine.sample(child, replace(GREEDY, max_tokens=6)),
                engine.sample(grandchild, replace(GREEDY, max_tokens=6)),
                engine.sample(sister, replace(GREEDY, max_tokens=9)),
            )
            assert short.tokens == want[done : done + 3]
            assert outs[0].tokens == outs[1].tokens == want[done + 3 : done + 9]
            assert outs[2].tokens == want[done : done + 9]
            for leaf in (child, sister, grandchild):
                await engine.release(leaf)
    samples = 1 + 11 * 4
    assert engine.stats()["recomputed"] <= subject.recomputed * samples


async def forks_equal_independent_requests(subject: Subject) -> None:
    tokens = subject.prompt(19, 5)
    seeds = [replace(RANDOM, seed=seed) for seed in range(4)]
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        stem = await engine.sample(seq, RANDOM)
        kids = await engine.fork(seq, 4)
        forked = await asyncio.gather(
            *(engine.sample(kid, params) for kid, params in zip(kids, seeds, strict=True))
        )
        whole = [*tokens, *stem.tokens]
        apart = await asyncio.gather(*(run(engine, whole, params) for params in seeds))
    for ours, theirs in zip(forked, apart, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert len({tuple(sample.tokens) for sample in forked}) > 1


async def seeds_fix_the_draws(subject: Subject) -> None:
    tokens = subject.prompt(8, 6)
    async with subject.start() as engine:
        first = await run(engine, tokens, RANDOM)
        others = [run(engine, subject.prompt(n, 7), GREEDY) for n in (3, 30)]
        again, *_ = await asyncio.gather(run(engine, tokens, RANDOM), *others)
        other = await run(engine, tokens, replace(RANDOM, seed=12))
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens


async def samples_carry_their_statistics(subject: Subject) -> None:
    async with subject.start() as engine:
        out = await run(engine, subject.prompt(8, 6), RANDOM)
    assert len(out.logprobs) == len(out.entropies) == len(out.log_kept_mass) == len(out.tokens)
    assert all(value <= 1e-5 for value in out.logprobs + out.log_kept_mass)
    assert all(value >= 0 for value in out.entropies)
    assert any(value < -1e-3 for value in out.log_kept_mass)


async def stop_tokens_and_strings_are_kept(subject: Subject) -> None:
    tokens = subject.prompt(8, 8)
    long = subject.greedy(tokens, 24)
    text = subject.text(long)
    # a string that no single token contains
    middle = len(subject.text(long[:9]))
    stop = text[middle - 1 : middle + 1]
    end = next(i for i in range(1, 25) if stop in subject.text(long[:i]))
    params = replace(GREEDY, max_tokens=24)
    async with subject.start() as engine:
        by_text = await run(engine, tokens, replace(params, stop=("never", stop)))
        by_token = await run(engine, tokens, replace(params, stop_token_ids=(long[5],)))
    assert by_text.tokens == long[:end]
    assert by_token.tokens == long[: long.index(long[5]) + 1]
    assert by_text.finish_reason == by_token.finish_reason == "stop"


async def sampling_resumes_across_a_pause(subject: Subject) -> None:
    tokens = subject.prompt(8, 8)
    long = subject.greedy(tokens, 24)
    middle = len(subject.text(long[:9]))
    tag = subject.text(long)[middle - 1 : middle + 1]
    end = next(i for i in range(1, 25) if tag in subject.text(long[:i]))
    params = replace(GREEDY, max_tokens=24, watch=Watch(tags=(tag,)))
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        out = await engine.sample(seq, params)
        assert (out.tokens, out.finish_reason, out.trigger) == (long[:end], "trigger", tag)
        rest = await engine.sample(seq, replace(GREEDY, max_tokens=24 - end))
        assert rest.tokens == long[end:]
        # one half of the tag before the pause, the other after it
        child, *_ = await engine.fork(seq, 1, at=len(tokens) + end - 1)
        late = await engine.sample(child, params)
        assert (late.tokens, late.trigger) == (long[end - 1 : end], tag)


async def entropy_pauses(subject: Subject) -> None:
    tokens = subject.prompt(8, 9)
    async with subject.start() as engine:
        plain = await run(engine, tokens, RANDOM)
        threshold = sorted(plain.entropies)[-3] + 1e-4
        watch = Watch(entropy_above=threshold)
        paused = await run(engine, tokens, replace(RANDOM, watch=watch))
    end = next(i for i, value in enumerate(plain.entropies) if value > threshold) + 1
    assert paused.tokens == plain.tokens[:end]
    assert (paused.finish_reason, paused.trigger) == ("trigger", "entropy")


async def constraints_limit_and_are_recorded(subject: Subject) -> None:
    ids = [3, 40, subject.vocab_size - 1]
    params = replace(RANDOM, top_k=0, top_p=1.0, constraint=Only(ids, free=(2,)))
    async with subject.start() as engine:
        out = await run(engine, subject.prompt(8, 9), params)
    assert out.allowed == {i: ids for i in range(12) if i != 2}
    assert all(out.tokens[i] in ids for i in out.allowed)
    assert out.log_kept_mass[2] == pytest.approx(0.0, abs=1e-5)
    assert all(out.logprobs[i] <= out.log_kept_mass[i] + 1e-5 for i in out.allowed)


async def a_bad_constraint_fails_alone(subject: Subject) -> None:
    class Broken:
        def allowed(self, generated: Sequence[int]) -> list[int] | None:
            if len(generated) == 3:
                raise KeyError("no such command")
            return None

    tokens = subject.prompt(9, 10)
    async with subject.start() as engine:
        bad, good = await asyncio.gather(
            run(engine, tokens, replace(GREEDY, constraint=Broken())),
            run(engine, tokens, GREEDY),
            return_exceptions=True,
        )
    assert isinstance(bad, KeyError)
    assert isinstance(good, Sample)
    assert good.tokens == subject.greedy(tokens, 12)


async def the_context_ends_a_sample(subject: Subject) -> None:
    tokens = subject.prompt(subject.context - 5, 11)
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        out = await engine.sample(seq, GREEDY)
        assert (len(out.tokens), out.finish_reason) == (5, "context")
        more = await engine.sample(seq, GREEDY)
        assert (more.tokens, more.finish_reason) == ([], "context")
        with pytest.raises(ValueError, match=f"context of {subject.context}"):
            await engine.extend(seq, [1])
        with pytest.raises(ValueError, match=f"{subject.context + 1} tokens.*{subject.context}"):
            await engine.open(subject.prompt(subject.context + 1, 12))


async def bad_calls_are_refused(subject: Subject) -> None:
    async with subject.start() as engine:
        seq = await engine.open([1, 2, 3])
        with pytest.raises(ValueError, match="empty"):
            await engine.open([])
        with pytest.raises(ValueError, match=str(subject.vocab_size)):
            await engine.open([1, subject.vocab_size])
        with pytest.raises(ValueError, match="n must"):
            await engine.fork(seq, 0)
        for at in (0, 4):
            with pytest.raises(ValueError, match="at must"):
                await engine.fork(seq, 1, at=at)
        with pytest.raises(ValueError, match="live"):
            await engine.update_weights({}, 1)
        await engine.release(seq)
        for call in (engine.release(seq), engine.fork(seq, 1), engine.sample(seq, GREEDY)):
            with pytest.raises(ValueError, match=f"seq {seq} is unknown"):
                await call


async def a_sequence_takes_one_call_at_a_time(subject: Subject) -> None:
    tokens = subject.prompt(6, 13)
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        first, second = await asyncio.gather(
            engine.sample(seq, GREEDY), engine.extend(seq, [1]), return_exceptions=True
        )
        assert isinstance(first, Sample)
        assert first.tokens == subject.greedy(tokens, 12)
        assert isinstance(second, ValueError)
        assert engine.length(seq) == 18


async def cancelling_leaves_the_engine_sane(subject: Subject) -> None:
    tokens = subject.prompt(6, 14)
    async with subject.start() as engine:
        seq = await engine.open(tokens)
        doomed = asyncio.create_task(engine.sample(seq, replace(GREEDY, max_tokens=200)))
        other = asyncio.create_task(run(engine, tokens, GREEDY))
        while engine.length(seq) < 10:
            await asyncio.sleep(0)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert (await other).tokens == subject.greedy(tokens, 12)
        got = engine.length(seq) - 6
        rest = await engine.sample(seq, GREEDY)
        assert rest.tokens == subject.greedy(tokens, got + 12)[got:]
        opening = asyncio.create_task(engine.open(subject.prompt(90, 15)))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await engine.release(seq)
        assert engine.stats()["blocks_in_use"] == 0


async def the_accounts_add_up(subject: Subject) -> None:
    prompt, note = subject.prompt(21, 16), subject.prompt(7, 17)
    async with subject.start() as engine:
        seq = await engine.open(prompt)
        await engine.sample(seq, GREEDY)
        await engine.extend(seq, note)
        await engine.sample(seq, replace(GREEDY, max_tokens=5))
        tip = await engine.fork(seq, 3)
        early = await engine.fork(seq, 2, at=21 + 4)
        await engine.sample(tip[0], replace(GREEDY, max_tokens=2))
        stats = engine.stats()
        assert stats["generated"] == 12 + 5 + 2
        assert stats["prefilled"] == 21 + 7
        assert stats["reused"] == 3 * 17 + 2 * 4
        assert stats["forks"] == 5
        assert stats["preemptions"] == 0 and stats["recomputed"] <= 5 * subject.recomputed
        assert stats["blocks_copied"] <= 5
        for live in (seq, *tip, *early):
            await engine.release(live)
        assert engine.stats()["blocks_in_use"] == 0


BEHAVIOUR: list[Callable[[Subject], Awaitable[None]]] = [
    greedy_alone_and_among_strangers,
    extend_continues_the_sequence,
    forks_of_forks_continue_exactly,
    forks_equal_independent_requests,
    seeds_fix_the_draws,
    samples_carry_their_statistics,
    stop_tokens_and_strings_are_kept,
    sampling_resumes_across_a_pause,
    entropy_pauses,
    constraints_limit_and_are_recorded,
    a_bad_constraint_fails_alone,
    the_context_ends_a_sample,
    bad_calls_are_refused,
    a_sequence_takes_one_call_at_a_time,
    cancelling_leaves_the_engine_sane,
    the_accounts_add_up,
]

INSIDE = {
    "constraints_limit_and_are_recorded": "its constraint is a Python object of the test",
    "a_bad_constraint_fails_alone": "its constraint is a Python object of the test",
    "cancelling_leaves_the_engine_sane": "needs tokens while they are sampled",
}
"""Checks that look into the engine's process."""
REMOTE = [check for check in BEHAVIOUR if check.__name__ not in INSIDE]
"""What an engine must do whose model runs in another process."""
