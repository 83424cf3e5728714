"""The embedded engine's GPU steps: interpreted on the CPU without the capture, whole on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny_models import greedy, prompt, tiny

from spark import LocalEngine
from spark.engines.base import SamplingParams
from spark.engines.local import device, runner
from spark.engines.local.device import DecodeBatch, bucket

# device plans live in Triton's module, which not every platform has
pytest.importorskip("triton")

CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def plans_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "uses_device_plans", lambda where: True)


def engine(family: str) -> LocalEngine:
    model = tiny(family)
    if CUDA:
        model = type(model)(model.config).eval()
        model.load_state_dict(tiny(family).state_dict())
        model.to("cuda")
    return LocalEngine(model, num_blocks=60, block_size=4)


def test_buckets_hold_what_they_are_asked_for() -> None:
    sizes = [bucket(n) for n in range(1, 600)]
    assert all(n <= size < 2 * n + 8 for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and len(set(sizes)) < 32


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_forks_decode_like_generate(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three leaves of a fork and a stranger: padded to 4 and 8 rows, work lists packed anew."""
    monkeypatch.setattr(device, "HEADROOM", 2)
    sizes: list[int] = []
    step = DecodeBatch.step

    def seen(batch: DecodeBatch, seqs: list[int], *inputs: list[int]) -> torch.Tensor:
        sizes.append(len(seqs))
        return step(batch, seqs, *inputs)

    monkeypatch.setattr(DecodeBatch, "step", seen)
    shared, other = prompt(18, 1), prompt(3, 2)
    new = 4

    async def main() -> None:
        async with engine(family) as local:
            root, stranger = await asyncio.gather(local.open(shared), local.open(other))
            leaves = await local.fork(root, 3)
            params = SamplingParams(max_tokens=new, temperature=0.0)
            outs = await asyncio.gather(*(local.sample(s, params) for s in [*leaves, stranger]))
            want = greedy(family, shared, new)
            assert [out.tokens for out in outs] == [want] * 3 + [greedy(family, other, new)]
            # the forks part: other tokens follow, prefilled while the stranger decodes
            await local.extend(leaves[0], [5, 6])
            more = SamplingParams(max_tokens=2, temperature=0.0)
            outs = await asyncio.gather(*(local.sample(s, more) for s in (leaves[0], stranger)))
            assert outs[0].tokens == greedy(family, [*shared, *want, 5, 6], 2)
            assert outs[1].tokens == greedy(family, other, new + 2)[new:]
            await local.release(root)
            for seq in (*leaves, stranger):
                await local.release(seq)
            assert local.stats()["blocks_in_use"] == 0

    asyncio.run(main())
    assert set(sizes) >= {2, 4}


def test_sequences_come_back_to_a_batch_after_they_grew_elsewhere() -> None:
    """By `extend`, and in another batch: blocks have come that the batch's tables never saw."""
    first, second, new = prompt(5, 1), prompt(6, 2), [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    params = SamplingParams(max_tokens=4, temperature=0.0)

    async def main() -> None:
        async with engine("llama") as local:
            a, b = await asyncio.gather(local.open(first), local.open(second))
            said: dict[int, list[int]] = {a: list(first), b: list(second)}

            async def sample(*seqs: int) -> None:
                outs = await asyncio.gather(*(local.sample(seq, params) for seq in seqs))
                for seq, out in zip(seqs, outs, strict=True):
                    assert out.tokens == greedy("llama", said[seq], 4)
                    said[seq] += out.tokens

            await sample(a)
            await local.extend(a, new)
            said[a] += new
            await sample(a)
            await sample(a, b)
            await sample(a)
            await sample(a)
            await sample(a, b)

    asyncio.run(main())


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mistral"])
def test_replays_equal_eager_steps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def logits() -> list[torch.Tensor]:
        rows: list[torch.Tensor] = []
        step = DecodeBatch.step

        def seen(*inputs: object) -> torch.Tensor:
            # passed on as they come, whatever they are
            rows.append(step(*inputs).clone())  # type: ignore[arg-type]
            return rows[-1]

        monkeypatch.setattr(DecodeBatch, "step", seen)

        async def main() -> None:
            async with engine(family) as local:
                root = await local.open(prompt(40, 1))
                leaves = await local.fork(root, 5)
                params = SamplingParams(max_tokens=20, seed=1)
                await asyncio.gather(*(local.sample(leaf, params) for leaf in leaves))

        asyncio.run(main())
        monkeypatch.setattr(DecodeBatch, "step", step)
        return rows

    replayed = logits()
    monkeypatch.setattr(device, "capture", lambda run, where: run)
    eager = logits()
    assert len(replayed) == len(eager) > 10
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.gpu
def test_bfloat16_engine_is_close_to_transformers() -> None:
    """Log-probabilities of the engine's own tokens, scored by transformers on the same GPU."""
    local = engine("qwen2")
    local.model.to(torch.bfloat16)
    local = LocalEngine(local.model, num_blocks=60)

    async def main() -> None:
        tokens = prompt(30, 3)
        async with local:
            seq = await local.open(tokens)
            out = await local.sample(seq, SamplingParams(max_tokens=20, seed=2))
            ids = torch.tensor([[*tokens, *out.tokens]], device="cuda")
            with torch.inference_mode():
                logs = local.model(ids).logits[0].float().log_softmax(-1)
            rows = torch.arange(len(tokens) - 1, ids.shape[1] - 1)
            want = logs[rows, ids[0, len(tokens) :]]
            # two bfloat16 forwards of this model differ by up to 0.09 on a CPU, by prompt and seed
            torch.testing.assert_close(torch.tensor(out.logprobs), want.cpu(), rtol=0, atol=0.15)

    asyncio.run(main())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of a device that there is none of; captures fail."""
    seen = SimpleNamespace(mode=0, stream="ours")

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        seen.stream = "the capture's"
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    fakes = {
        "CUDAGraph": object,
        "graph": graph,
        "get_sync_debug_mode": lambda: seen.mode,
        "set_sync_debug_mode": lambda mode: setattr(seen, "mode", mode),
        "current_stream": lambda: seen.stream,
        "set_stream": lambda stream: setattr(seen, "stream", stream),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seen


def test_a_model_that_cannot_be_captured_runs_step_by_step(
    gpu: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []
    device.capture(lambda: steps.append(1), torch.device("cuda"))()
    # once to see whether it waits, once as it is captured
    assert len(steps) == 3 and "not permitted when stream is capturing" in caplog.text
    assert (gpu.mode, gpu.stream) == (0, "ours")


def test_a_model_that_waits_for_the_device_is_not_captured(
    gpu: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    def look() -> None:
        if gpu.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        gpu.stream = "looked"

    device.capture(look, torch.device("cuda"))()
    assert (gpu.mode, gpu.stream) == (0, "looked") and "a synchronizing CUDA" in caplog.text
