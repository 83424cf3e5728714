"""The embedded engine behind the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.engines.base import FinishReason, Sample
from spark.engines.local import LocalEngine
from spark.serve.backend import Delta, Fork, LeafRequest


class LocalBackend:
    """One `LocalEngine`; a leaf is one of its sequences, kept until its tree is released.

    A leaf that is continued at its tip goes on in the same sequence: tokens are only ever
    appended, so that earlier places stay there to fork from.
    """

    name = "local"
    options: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    constrains = True

    def __init__(self, engine: LocalEngine, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """`tokenizer` is the one that `engine` was made with; `model` the name to serve it by."""
        self.engine, self.tokenizer, self.model = engine, tokenizer, model
        self.vocab_size = engine.shape.vocab_size
        self.eos_token_ids = eos_token_ids(engine.model, tokenizer)
        # a model without a limit is limited by the pool
        self.context = engine.shape.context or engine.capacity
        self._seqs: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[Sample]] = {}

    @property
    def failure(self) -> str | None:
        """Why the engine answers nothing any more."""
        return self.engine.failure

    async def generate(self, request: LeafRequest) -> AsyncGenerator[Delta, None]:
        """Stream the tokens of one leaf; see `spark.serve.backend.Backend.generate`."""
        seq, fork = await self._open(request)
        self._seqs[request.id] = seq
        deltas: asyncio.Queue[Delta | None] = asyncio.Queue()

        def on_token(sample: Sample, reason: FinishReason | None) -> None:
            deltas.put_nowait(last_token(sample, reason))

        task = asyncio.create_task(self.engine.sample(seq, request.params, on_token))
        task.add_done_callback(lambda _: deltas.put_nowait(None))
        self._tasks[request.id] = task
        # not below, where a cancelled caller may not get
        task.add_done_callback(lambda _: self._tasks.pop(request.id))
        last = Delta()
        try:
            while (delta := await deltas.get()) is not None:
                delta.fork, fork = fork, None
                last = delta
                yield delta
            sample = await task
            if last.finish_reason is None:
                yield Delta(finish_reason=sample.finish_reason, fork=fork)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def abort(self, ids: Iterable[str]) -> None:
        """Stop leaves that run."""
        tasks = [self._tasks[id] for id in ids if id in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def release(self, ids: Iterable[str]) -> None:
        """Free the sequences of a whole tree."""
        ids = list(ids)
        await self.abort(ids)
        # several leaves may share a sequence
        for seq in {self._seqs.pop(id) for id in ids if id in self._seqs}:
            await self.engine.release(seq)

    def stats(self) -> Mapping[str, int]:
        """Return the engine's counters."""
        return self.engine.stats()

    async def _open(self, request: LeafRequest) -> tuple[int, Fork | None]:
        """Return a sequence that holds the request's tokens, and what its prefix cost."""
        tokens, at = list(request.tokens), request.fork_at
        if at is None:
            return await self.engine.open(tokens), None
        parent = self._seqs.get(request.parent or "")
        if parent is None:
            return await self.engine.open(tokens), Fork(path="recompute", recomputed=at)
        known = self.engine.cached(parent)
        if any(self._seqs.get(id) == parent for id in self._tasks):
            # one that was just made is to tell the engine first
            await asyncio.sleep(0)
        running = self.engine.busy(parent)
        if not running and self.engine.length(parent) == at:
            seq, held = parent, known
        else:
            (seq,) = await self.engine.fork(parent, 1, at)
            held = self.engine.cached(seq)
        try:
            if tokens[at:]:
                await self.engine.extend(seq, tokens[at:])
        except BaseException:
            if seq != parent:
                await self.engine.release(seq)
            raise
        # the token sampled last was not computed by anybody yet
        again = 0 if running and held else max(0, at - 1 - min(known, held))
        return seq, Fork(path="recompute" if again else "exact", recomputed=again)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what the model's generation config calls end of text, else the tokenizer does."""
    config: Any = model.generation_config
    ends = tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def last_token(sample: Sample, reason: FinishReason | None) -> Delta:
    """Return what a sample in progress added last."""
    at = len(sample.tokens) - 1
    return Delta(
        tokens=sample.tokens[-1:],
        logprobs=sample.logprobs[-1:],
        entropies=sample.entropies[-1:],
        log_kept_mass=sample.log_kept_mass[-1:],
        allowed={0: sample.allowed[at]} if at in sample.allowed else {},
        finish_reason=reason,
        weight_version=sample.weight_version,
    )
