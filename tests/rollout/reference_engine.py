"""The engine protocol in its plainest form: token lists, no KV, one token of one sequence a step.

What the driver does on it must be what it does on every other engine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch

from spark.engines.base import EngineError, Sample, SamplingParams
from spark_kernels import score

NextLogits = Callable[[list[int]], torch.Tensor]


class ReferenceEngine:
    """`next_logits` maps the tokens of a sequence to the logits [V] of the next one."""

    def __init__(
        self, next_logits: NextLogits, tokenizer: Any, *, jitter: int | None = None
    ) -> None:
        """`jitter`: seed of random delays between tokens, which must not change any result."""
        self._next_logits = next_logits
        self._tokenizer = tokenizer
        self._delay = None if jitter is None else random.Random(jitter)
        self._ids = count()
        self.live: dict[int, tuple[list[int], list[bool]]] = {}
        self.left = False
        """Whether it was a context manager that has ended."""
        self._stats = dict.fromkeys(
            ("generated", "prefilled", "reused", "recomputed", "forks", "preemptions"), 0
        )

    async def __aenter__(self) -> ReferenceEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def open(self, tokens: Sequence[int]) -> int:
        seq = self._new(list(tokens), [False] * len(tokens))
        self._stats["prefilled"] += len(tokens)
        return seq

    async def extend(self, seq: int, tokens: Sequence[int]) -> None:
        self.live[seq][0].extend(tokens)
        self.live[seq][1].extend([False] * len(tokens))
        self._stats["prefilled"] += len(tokens)

    async def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        tokens, sampled = self.live[seq]
        at = len(tokens) if at is None else at
        self._stats["forks"] += n
        self._stats["reused"] += n * sum(sampled[:at])
        return [self._new(tokens[:at], sampled[:at]) for _ in range(n)]

    async def sample(self, seq: int, params: SamplingParams) -> Sample:
        out = Sample()
        while not self._finished(out, params):
            for _ in range(self._delay.randrange(4) if self._delay else 1):
                await asyncio.sleep(0)
            self._draw(seq, params, out)
        return out

    async def release(self, seq: int) -> None:
        del self.live[seq]

    async def update_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Never asked: rollouts change no weights."""
        raise NotImplementedError

    def length(self, seq: int) -> int:
        return len(self.live[seq][0])

    def stats(self) -> dict[str, int]:
        return dict(self._stats)

    def _new(self, tokens: list[int], sampled: list[bool]) -> int:
        seq = next(self._ids)
        self.live[seq] = (tokens, sampled)
        return seq

    def _draw(self, seq: int, params: SamplingParams, out: Sample) -> None:
        tokens, sampled = self.live[seq]
        logits = self._next_logits(tokens)[None].float()
        allowed = params.constraint.allowed(out.tokens) if params.constraint else None
        scores = score(
            logits,
            temperature=torch.tensor([params.temperature]),
            top_k=torch.tensor([params.top_k], dtype=torch.int32),
            top_p=torch.tensor([params.top_p]),
            min_p=torch.tensor([params.min_p]),
            allowed=None if allowed is None else bitmask(allowed, logits.shape[1]),
            seed=torch.tensor([params.seed]),
            position=torch.tensor([len(tokens)]),
        )
        token = int(scores.tokens)
        if token < 0:
            raise EngineError("the logits are not finite")
        if allowed is not None:
            out.allowed[len(out.tokens)] = list(allowed)
        out.tokens.append(token)
        out.logprobs.append(float(scores.logprob))
        out.entropies.append(float(scores.entropy))
        out.log_kept_mass.append(float(scores.log_kept_mass))
        tokens.append(token)
        sampled.append(True)
        self._stats["generated"] += 1

    def _finished(self, out: Sample, params: SamplingParams) -> bool:
        if not out.tokens:
            return False
        text = self._tokenizer.decode(out.tokens)
        if out.tokens[-1] in params.stop_token_ids or text.endswith(params.stop):
            out.finish_reason = "stop"
        elif len(out.tokens) >= params.max_tokens:
            out.finish_reason = "length"
        elif trigger := self._trigger(out, params, text):
            out.finish_reason, out.trigger = "trigger", trigger
        else:
            return False
        return True

    def _trigger(self, out: Sample, params: SamplingParams, text: str) -> str | None:
        if params.watch is None:
            return None
        above = params.watch.entropy_above
        if above is not None and out.entropies[-1] > above:
            return "entropy"
        return next((tag for tag in params.watch.tags if text.endswith(tag)), None)


def bitmask(ids: Sequence[int], vocabulary: int) -> torch.Tensor:
    """Return int32 [1, ceil(V / 32)] with the bits of `ids` set."""
    words = [0] * -(-vocabulary // 32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    signed = [word - (word >> 31 << 32) for word in words]
    return torch.tensor([signed], dtype=torch.int32)
