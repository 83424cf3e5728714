"""One step of the engine: schedule, run the model, draw tokens, tell who is done."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from spark.engines.base import EngineError, FinishReason
from spark.engines.local.model import ModelShape, first_non_finite
from spark.engines.local.runner import ModelRunner, Step
from spark.engines.local.sampler import Sampler, allowed_ids
from spark.engines.local.scheduler import Scheduler, Work
from spark.engines.local.sequence import Generation, Request, Sequence


class EngineCore:
    """The engine without its callers: takes requests, steps, puts results into their futures."""

    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, scheduler: Scheduler, pack: bool
    ) -> None:
        self.weight_version = 0
        self.scheduler = scheduler
        self._model = model
        self._shape = shape
        self._runner = ModelRunner(model, shape, scheduler.pool, pack)
        self._sampler = Sampler(shape.vocab_size, model.device)
        names = ("generated", "prefilled", "reused", "recomputed", "forks", "blocks_copied")
        self._counters = dict.fromkeys(names, 0)

    def stats(self) -> dict[str, int]:
        """Return the counters; see `spark.engines.base.Engine.stats`."""
        return {
            **self._counters,
            "blocks_in_use": self.scheduler.num_blocks - self.scheduler.pool.num_free,
            "preemptions": self.scheduler.preemptions,
        }

    def fork(self, seq: Sequence, n: int, at: int) -> list[int]:
        """Make `n` children of `seq` that share its first `at` computed tokens."""
        handles, pairs = self.scheduler.fork(seq, n, at)
        self._runner.copy(pairs)
        children = []
        for handle in handles:
            child = self.scheduler.add_sequence(seq.tokens[:at], seq.sampled[:at])
            child.ever_computed = at
            # no victim before those that nobody has used for longer
            child.last_used = self.scheduler.step
            if handle is not None:
                child.handle, child.computed = handle, at
                child.slot = self._slots(child, at - 1, at)[0]
            children.append(child.id)
        self._counters["forks"] += n
        self._counters["blocks_copied"] += len(pairs)
        self._counters["reused"] += n * seq.sampled.count(1, 0, at)
        return children

    def run_step(self) -> None:
        """Compute one batch and finish the requests it completes."""
        work = self.scheduler.schedule()
        if not work:
            oldest = self.scheduler.requests[0]
            self._drop(oldest, EngineError(self._too_large(oldest.seq)))
            return
        step = self._batch(work)
        drawing, allowed = self._drawing(work)
        step.rows = [request.seq.slot for request in drawing]
        logits = self._runner.forward(step)
        if drawing:
            self._draw(logits, drawing, allowed)
        for request, _ in work:
            # making room for one fork may have preempted another
            if request.generation is None and request.missing <= 0:
                self._finish(request)

    def fail(self, error: Exception) -> None:
        """Give `error` to everyone who waits."""
        for request in list(self.scheduler.requests):
            self._drop(request, error)

    def _batch(self, work: Work) -> Step:
        """Flatten the tokens to compute, and count them."""
        step = Step(tokens=[], positions=[], slots=[], rows=[])
        for request, count in work:
            if not count:
                continue
            seq = request.seq
            start, end = seq.computed, seq.computed + count
            slots = self._slots(seq, start, end)
            step.tokens += seq.tokens[start:end]
            step.positions += range(start, end)
            step.slots += slots
            assert seq.handle is not None
            step.seqs.append(seq.handle)
            step.counts.append(count)
            self._count(seq, start, end)
            seq.slot, seq.computed = slots[-1], end
            seq.ever_computed = max(seq.ever_computed, end)
        return step

    def _slots(self, seq: Sequence, start: int, end: int) -> list[int]:
        """Return where the tokens [start, end) of `seq` live in the pool."""
        size = self.scheduler.block_size
        if end - start == 1 and start % size and start == seq.computed:
            return [seq.slot + 1]
        assert seq.handle is not None
        table = self.scheduler.pool.table(seq.handle)
        return [table[i // size] * size + i % size for i in range(start, end)]

    def _count(self, seq: Sequence, start: int, end: int) -> None:
        fresh = max(start, min(end, seq.ever_computed))
        self._counters["recomputed"] += fresh - start
        self._counters["prefilled"] += end - fresh - seq.sampled.count(1, fresh, end)

    def _drawing(self, work: Work) -> tuple[list[Request], list[list[int] | None]]:
        """Return the requests that get a token now and the ids they are limited to."""
        drawing: list[Request] = []
        allowed: list[list[int] | None] = []
        for request, _ in work:
            if request.generation is None or request.missing:
                continue
            try:
                allowed.append(allowed_ids(request.generation, self._shape.vocab_size))
                drawing.append(request)
            except Exception as error:
                # a caller's constraint may raise anything; only its own request fails
                self._drop(request, error)
        return drawing, allowed

    def _draw(self, logits: Any, drawing: list[Request], allowed: list[list[int] | None]) -> None:
        draws = self._sampler.draw(logits, drawing, allowed)
        for request, ids, token, logprob, mass, entropy in zip(
            drawing, allowed, *draws, strict=True
        ):
            if token < 0:
                self._drop(request, EngineError(self._unusable(request.seq)))
                continue
            generation = request.generation
            assert generation is not None
            sample = generation.sample
            if ids is not None:
                sample.allowed[len(sample.tokens)] = ids
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            sample.log_kept_mass.append(mass)
            sample.entropies.append(entropy)
            request.seq.tokens.append(token)
            request.seq.sampled.append(1)
            request.target += 1
            reason = self._finish_reason(generation, len(request.seq.tokens))
            if reason is not None:
                sample.finish_reason = reason
            if generation.on_token is not None:
                try:
                    generation.on_token(sample, reason)
                except Exception as error:
                    # a caller's code may raise anything; only its own request fails
                    self._drop(request, error)
                    continue
            if reason is not None:
                self._finish(request)
        self._counters["generated"] += sum(token >= 0 for token in draws.tokens)

    def _finish_reason(self, generation: Generation, length: int) -> FinishReason | None:
        """Return why the token just added ends the sample; None = it goes on."""
        params, sample = generation.params, generation.sample
        token = sample.tokens[-1]
        stopped = generation.stop.feed(token) if generation.stop else None
        tag = generation.tags.feed(token) if generation.tags else None
        if stopped is not None or token in params.stop_token_ids:
            return "stop"
        if len(sample.tokens) == params.max_tokens:
            return "length"
        if length == self._shape.context:
            return "context"
        if params.watch is None:
            return None
        threshold = params.watch.entropy_above
        if tag is None and threshold is not None and sample.entropies[-1] > threshold:
            tag = "entropy"
        sample.trigger = tag
        return None if tag is None else "trigger"

    def _finish(self, request: Request) -> None:
        self.scheduler.drop_request(request)
        if not request.future.done():
            request.future.set_result(request.finish() if request.finish else None)

    def _drop(self, request: Request, error: Exception) -> None:
        """Fail one request."""
        self.scheduler.drop_request(request)
        if isinstance(error, StopIteration):
            # no future takes one
            error = RuntimeError("a callback raised StopIteration")
        if not request.future.done():
            request.future.set_exception(error)

    def _unusable(self, seq: Sequence) -> str:
        try:
            name = first_non_finite(self._model, seq.tokens)
        except Exception:
            # a look at what went wrong must not go wrong for the others
            name = ""
        where = f"first non-finite output: {name}" if name else "finite when computed once more"
        return f"seq {seq.id}: no token can be drawn after {len(seq.tokens)} tokens ({where})"

    def _too_large(self, seq: Sequence) -> str:
        return (
            f"seq {seq.id} of {len(seq.tokens)} tokens does not fit the pool of "
            f"{self.scheduler.num_blocks} blocks of {self.scheduler.block_size}: raise num_blocks "
            "(kv_blocks of recipes and servers)"
        )
