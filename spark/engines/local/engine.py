"""The embedded engine: the protocol of `spark.engines.base` on top of a transformers model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Tokens
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.engines.base import ContextError, EngineError, Sample, SamplingParams
from spark.engines.local.core import EngineCore
from spark.engines.local.model import check_vocabulary, load, load_state, probe
from spark.engines.local.scheduler import Scheduler
from spark.engines.local.sequence import Generation, OnToken, Request, Sequence
from spark.engines.text import Matcher, TokenBytes


class LocalEngine:
    """Runs a transformers decoder in this process; see `spark.engines.base.Engine`.

    Steps run on the event loop of the caller, one after the other while there is work: the same
    calls with the same seeds give the same result. A sequence takes one call at a time.

    Example:
        async with LocalEngine(model, num_blocks=4096) as engine:
            seq = await engine.open([1, 2, 3])
            out = await engine.sample(seq, SamplingParams(max_tokens=16, seed=7))
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        *,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        max_batched_tokens: int = 2048,
        tokenizer: PreTrainedTokenizerBase | None = None,
        pack_weights: bool = True,
    ) -> None:
        """`model` is a transformers module, a name or a path.

        Args:
            num_blocks: size of the KV pool.
            block_size: tokens a block holds.
            dtype: of the weights and the KV; default: as the model is stored.
            device: default: where the module is, "cpu" for a name or path.
            max_batched_tokens: most tokens computed in one step; longer prompts are split.
            tokenizer: needed for string stops and tags only.
            pack_weights: on a CPU, keep large linear weights a second time, as its kernels read
                them: decoding is faster, for more memory.

        Raises:
            ValueError: a size is below 1, the tokenizer does not fit the model, or the model is
                of a kind that cannot run here (docs/serving.md).
        """
        given = locals()
        for name in ("num_blocks", "block_size", "max_batched_tokens"):
            if given[name] < 1:
                raise ValueError(f"{name} must be >= 1, got {given[name]}")
        self.model = load(model, dtype, device)
        self.shape = probe(self.model)
        check_vocabulary(tokenizer, self.shape)
        self._text = None if tokenizer is None else TokenBytes(tokenizer)
        self._scheduler = Scheduler(num_blocks, block_size, max_batched_tokens)
        self._core = EngineCore(self.model, self.shape, self._scheduler, pack_weights)
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LocalEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Fail what is still waiting and release every sequence."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._core.fail(EngineError("the engine was closed"))
        for seq in list(self._scheduler.sequences.values()):
            self._scheduler.drop_sequence(seq)

    async def open(self, tokens: Tokens[int]) -> int:
        """Prefill `tokens` and return a handle; its KV lives until `release`.

        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than fit.
        """
        if not tokens:
            raise ValueError("tokens is empty: a sequence starts with at least one token")
        self._check_tokens("prompt", tokens, 0)
        seq = self._scheduler.add_sequence(list(tokens), bytearray(len(tokens)))
        try:
            await self._compute(seq)
        except BaseException:
            # the caller never learns the handle
            self._scheduler.drop_sequence(seq)
            raise
        return seq.id

    async def extend(self, seq: int, tokens: Tokens[int]) -> None:
        """Append environment tokens to `seq` and compute them.

        Raises:
            ValueError: the sequence is unknown or busy, or the tokens do not fit.
        """
        state = self._idle(seq)
        self._check_tokens("extension", tokens, len(state.tokens))
        state.tokens.extend(tokens)
        state.sampled.extend(bytes(len(tokens)))
        await self._compute(state)

    async def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        """Return `n` copy-on-write children that share the first `at` tokens (default: all).

        Nothing is computed twice: a token sampled last is computed once for all children, and
        the hidden states behind earlier tokens are kept. `seq` may be sampling: it goes on, and
        the children share what it had when this was called.

        Raises:
            ValueError: the sequence is unknown, `n` < 1, or `at` outside [1, length].
        """
        state = self._known(seq)
        length = len(state.tokens) if at is None else at
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if not 1 <= length <= len(state.tokens):
            raise ValueError(f"at must be in [1, {len(state.tokens)}], got {at}")
        children: list[int] = []

        def finish() -> None:
            children.extend(self._core.fork(state, n, length))

        try:
            while state.request is not None and state.computed < length:
                # its own next step computes the missing token
                await asyncio.sleep(0)
            self._known(seq)
            await self._compute(state, length, finish)
        except BaseException:
            for child in children:
                self._scheduler.drop_sequence(self._scheduler.sequences[child])
            raise
        return children

    async def sample(
        self, seq: int, params: SamplingParams, on_token: OnToken | None = None
    ) -> Sample:
        """Sample a continuation; the sampled tokens are appended to `seq`.

        Where a token fits several reasons to finish, the first of stop, length, context and
        trigger is given. A cancelled call leaves the tokens sampled so far in the sequence.
        `on_token` is called right after each token, between the engine's steps; what it raises
        fails this call.

        Raises:
            ValueError: the sequence is unknown or busy, or strings are watched for without a
                tokenizer.
            EngineError: the logits were not finite, or the sequence outgrew the pool.
        """
        state = self._idle(seq)
        generation = Generation(params=params, on_token=on_token)
        generation.sample.weight_version = self._core.weight_version
        generation.stop = self._matcher(params.stop, state)
        generation.tags = self._matcher(params.watch.tags if params.watch else (), state)
        if len(state.tokens) == self.shape.context:
            generation.sample.finish_reason = "context"
            return generation.sample
        await self._submit(state, len(state.tokens), generation=generation)
        return generation.sample

    async def release(self, seq: int) -> None:
        """Drop `seq` and free the blocks nobody else holds."""
        self._scheduler.drop_sequence(self._idle(seq))

    async def update_weights(self, state: Mapping[str, torch.Tensor], version: int) -> None:
        """Load `state` (names of the model's `state_dict`, all or some) into the live module.

        Raises:
            ValueError: sequences are live, a name is unknown or a shape differs; nothing is
                loaded then.
        """
        if self._scheduler.sequences:
            raise ValueError(
                f"{len(self._scheduler.sequences)} sequences are live and hold KV of the old "
                "weights: release them before update_weights"
            )
        load_state(self.model, state)
        self._core.weight_version = version

    def length(self, seq: int) -> int:
        """Return the number of tokens of `seq`."""
        return len(self._known(seq).tokens)

    @property
    def capacity(self) -> int:
        """Tokens the KV pool holds."""
        return self._scheduler.capacity

    @property
    def failure(self) -> str | None:
        """Why the engine answers nothing any more; None while it does."""
        return None if self._failure is None else repr(self._failure)

    def busy(self, seq: int) -> bool:
        """Return whether `seq` is being computed or sampled."""
        return self._known(seq).request is not None

    def cached(self, seq: int) -> int:
        """Return how many tokens of `seq` have their KV in the pool now."""
        return self._known(seq).computed

    def stats(self) -> dict[str, int]:
        """Return the counters; see `spark.engines.base.Engine.stats`."""
        return self._core.stats()

    def _known(self, seq: int) -> Sequence:
        if seq not in self._scheduler.sequences:
            raise ValueError(f"seq {seq} is unknown or was released")
        return self._scheduler.sequences[seq]

    def _idle(self, seq: int) -> Sequence:
        state = self._known(seq)
        if state.request is not None:
            raise ValueError(f"seq {seq} is busy with another call: await that one first")
        return state

    def _check_tokens(self, what: str, tokens: Tokens[int], before: int) -> None:
        total = before + len(tokens)
        context = self.shape.context
        if context is not None and total > context:
            grown = f" after {before} tokens" if before else ""
            raise ContextError(
                f"{what} of {len(tokens)} tokens{grown} exceeds the model's context of {context}"
            )
        if total > self._scheduler.capacity:
            raise ValueError(
                f"{what} makes a sequence of {total} tokens but the pool holds "
                f"{self._scheduler.capacity}: raise num_blocks (kv_blocks of recipes and servers)"
            )
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.shape.vocab_size:
            raise ValueError(
                f"{what} has a token id outside [0, {self.shape.vocab_size}): "
                f"{min(tokens)}..{max(tokens)}"
            )

    def _matcher(self, strings: tuple[str, ...], seq: Sequence) -> Matcher | None:
        if not strings:
            return None
        if self._text is None:
            raise ValueError(f"watching for {strings} needs LocalEngine(tokenizer=...)")
        return Matcher(strings, self._text, _last_sampled(seq))

    async def _compute(
        self, seq: Sequence, target: int | None = None, finish: Callable[[], None] | None = None
    ) -> None:
        """Wait until the first `target` tokens (default: all) of `seq` are computed."""
        target = len(seq.tokens) if target is None else target
        if seq.computed < target:
            await self._submit(seq, target, finish=finish)
        elif finish is not None:
            finish()

    async def _submit(self, seq: Sequence, target: int, **how: Any) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine failed: {self._failure!r}") from self._failure
        future = asyncio.get_running_loop().create_future()
        request = Request(seq=seq, target=target, future=future, **how)
        self._scheduler.add_request(request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            await future
        finally:
            if seq.request is request:
                self._scheduler.drop_request(request)

    async def _run(self) -> None:
        """Step while there is work; between steps, whoever is ready may queue more."""
        while self._scheduler.requests:
            try:
                self._core.run_step()
            except Exception as error:
                # whatever it was, nobody may wait forever
                self._failure = error
                self._core.fail(EngineError(f"the engine failed: {error!r}"))
                return
            await asyncio.sleep(0)


def _last_sampled(seq: Sequence) -> Iterable[int]:
    """Yield the run of sampled tokens at the end of `seq`, newest first."""
    given = seq.sampled.rfind(0)
    return islice(reversed(seq.tokens), len(seq.tokens) - given - 1)
