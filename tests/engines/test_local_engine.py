"""The embedded engine's own contract: failures, preemption, bad input, many callers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tiny_models import greedy, prompt, tiny

import spark
from spark import LocalEngine
from spark.core import Watch
from spark.engines import ENGINES
from spark.engines.base import EngineError, Sample, SamplingParams

GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


async def run(engine: LocalEngine, tokens: list[int], params: SamplingParams = GREEDY) -> Sample:
    seq = await engine.open(tokens)
    try:
        return await engine.sample(seq, params)
    finally:
        await engine.release(seq)


def test_the_engine_has_a_name() -> None:
    assert ENGINES["local"] is LocalEngine is spark.LocalEngine
    with pytest.raises(ValueError, match="unknown engine 'locl'; known: "):
        ENGINES["locl"]


def test_strings_need_a_tokenizer() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("llama"), num_blocks=8) as engine:
            seq = await engine.open([1])
            for params in (
                replace(GREEDY, stop=("x",)),
                replace(GREEDY, watch=Watch(tags=("<explore>",))),
            ):
                with pytest.raises(ValueError, match="tokenizer"):
                    await engine.sample(seq, params)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("top_k", 3.0),
        ("seed", "7"),
        ("temperature", True),
        ("temperature", "1"),
        ("top_p", None),
        ("min_p", float("nan")),
        ("stop_token_ids", (1.0,)),
        ("stop", (5,)),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("seed", -1),
        ("stop", "</action>"),
        ("stop", ("",)),
    ],
)
def test_sampling_parameters_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{"max_tokens": 1, field: value})


def test_what_never_fits_is_an_error_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=6, block_size=4) as engine:
            with pytest.raises(ValueError, match="25 tokens but the pool holds 24"):
                await engine.open(prompt(25))
            long, other = await asyncio.gather(
                run(engine, prompt(20), replace(GREEDY, max_tokens=20)),
                run(engine, prompt(8)),
                return_exceptions=True,
            )
            assert isinstance(long, EngineError)
            assert "does not fit the pool of 6 blocks" in str(long)
            assert isinstance(other, Sample)
            assert other.tokens == greedy("qwen3", prompt(8), 10)
            assert engine.stats()["blocks_in_use"] == 0

    asyncio.run(main())


def test_forks_without_room_start_preempted_and_are_exact() -> None:
    tokens = prompt(13, 4)

    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=8, block_size=4) as engine:
            seq = await engine.open(tokens)
            kids = await engine.fork(seq, 8)
            assert engine.stats()["preemptions"] > 0
            for kid in kids:
                out = await engine.sample(kid, replace(GREEDY, max_tokens=6))
                assert out.tokens == greedy("qwen3", tokens, 6)
                await engine.release(kid)
            stats = engine.stats()
            assert stats["prefilled"] == 13
            assert stats["recomputed"] > 0

    asyncio.run(main())


def test_a_fresh_fork_yields_after_what_was_idle_for_longer() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=7, block_size=4) as engine:
            old, parent = await engine.open(prompt(8, 1)), await engine.open(prompt(16, 2))
            child, _ = await engine.fork(parent, 2)
            await engine.open(prompt(8, 3))
            held = engine._scheduler.sequences
            assert held[old].handle is None and held[child].handle is not None
            assert engine.stats()["preemptions"] == 1

    asyncio.run(main())


@dataclass
class Allows:
    """A constraint that always says the same."""

    ids: Any

    def allowed(self, tokens: list[int]) -> Any:
        return self.ids


def test_what_a_constraint_says_twice_counts_once() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=16) as engine:
            constrained = replace(GREEDY, temperature=1.0, constraint=Allows((9, 5, 9, 5)))
            sample = await run(engine, prompt(8), constrained)
            assert list(sample.allowed.values()) == [[9, 5]] * 10

    asyncio.run(main())


def test_a_constraint_that_names_no_ids_fails_its_own_request() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=16) as engine:
            odd = run(engine, prompt(8), replace(GREEDY, constraint=Allows([3.0])))
            good, error = await asyncio.gather(run(engine, prompt(8)), odd, return_exceptions=True)
            assert isinstance(error, TypeError) and "float" in str(error)
            assert good.tokens == greedy("qwen3", prompt(8), 10)

    asyncio.run(main())


def test_a_failing_step_fails_everyone_who_waits(monkeypatch) -> None:
    async def main() -> None:
        engine = LocalEngine(tiny("llama"), num_blocks=16)
        monkeypatch.setattr(engine._core, "run_step", lambda: 1 // 0)
        outs = await asyncio.gather(engine.open([1]), engine.open([2]), return_exceptions=True)
        assert all(isinstance(out, EngineError) for out in outs)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await engine.open([3])
        await engine.__aexit__()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("raised", "seen"), [(LookupError("nobody"), LookupError), (StopIteration(), RuntimeError)]
)
def test_a_raising_callback_fails_its_own_request_only(
    raised: Exception, seen: type[Exception]
) -> None:
    def listener(sample: Sample, reason: str | None) -> None:
        if len(sample.tokens) == 3:
            raise raised

    async def main() -> None:
        async with LocalEngine(tiny("qwen3"), num_blocks=32) as engine:
            seq = await engine.open(prompt(9))
            failed, fine = await asyncio.gather(
                engine.sample(seq, GREEDY, listener),
                run(engine, prompt(12)),
                return_exceptions=True,
            )
            assert isinstance(failed, seen)
            assert isinstance(fine, Sample) and fine.tokens == greedy("qwen3", prompt(12), 10)
            # the tokens before it stay, and the sequence goes on
            assert engine.length(seq) == 12
            again = await engine.sample(seq, replace(GREEDY, max_tokens=7))
            assert again.tokens == greedy("qwen3", prompt(9), 10)[3:]
            await engine.release(seq)
            assert engine.stats()["blocks_in_use"] == 0

    asyncio.run(main())


def test_leaving_the_engine_fails_who_still_waits() -> None:
    async def main() -> None:
        async with LocalEngine(tiny("llama"), num_blocks=16) as engine:
            task = asyncio.create_task(run(engine, prompt(5)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises((EngineError, ValueError)):
            await task
        assert engine.stats()["blocks_in_use"] == 0
        assert (await run(engine, prompt(5))).tokens == greedy("llama", prompt(5), 10)

    asyncio.run(main())


def test_a_thousand_trajectories_share_few_blocks() -> None:
    """More callers than the pool holds: all finish, each with its own exact tokens."""

    async def main() -> list[Sample]:
        async with LocalEngine(tiny("qwen3"), num_blocks=300, block_size=8) as engine:
            params = [replace(GREEDY, max_tokens=3 + i % 5) for i in range(1000)]
            outs = await asyncio.gather(
                *(run(engine, prompt(1 + i % 20), params[i]) for i in range(1000))
            )
            assert engine.stats()["blocks_in_use"] == 0
            return outs

    for i, out in enumerate(asyncio.run(main())):
        assert out.tokens == greedy("qwen3", prompt(1 + i % 20), 10)[: 3 + i % 5]


def test_one_seed_gives_one_result() -> None:
    params = SamplingParams(max_tokens=9, temperature=1.0, min_p=0.02)

    async def tree(engine: LocalEngine, seed: int) -> list[list[int]]:
        seq = await engine.open(prompt(10, seed))
        stem = await engine.sample(seq, replace(params, seed=seed))
        kids = await engine.fork(seq, 3, at=12)
        leaves = await asyncio.gather(
            *(engine.sample(k, replace(params, seed=seed + i)) for i, k in enumerate(kids))
        )
        return [stem.tokens, *(leaf.tokens for leaf in leaves)]

    async def main() -> tuple[list, dict]:
        async with LocalEngine(tiny("qwen3"), num_blocks=64, block_size=4) as engine:
            return await asyncio.gather(*(tree(engine, s) for s in range(5))), engine.stats()

    assert asyncio.run(main()) == asyncio.run(main())
