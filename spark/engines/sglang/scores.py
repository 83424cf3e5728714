"""Scores of sampled tokens on their way out: SGLang's asynchronous observer of the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spark.engines.base import LEAST_TEMPERATURE, LEAST_TOP_P
from spark.engines.sglang.fork import SCORES
from spark.engines.sglang.hooks import Hook
from spark.engines.sglang.rows import Rows
from spark_kernels import score


class Observer:
    """SGLang's `SamplingObserver`: called around grammar mask and sampler of every step."""

    def __init__(self, samples: bool) -> None:
        """`samples`: Spark's sampler draws, and leaves its scores in the rows."""
        self._samples = samples

    def is_active(self, sampling_info: Any) -> bool:
        """Return whether this step needs us."""
        rows = getattr(sampling_info, "spark", None)
        return rows is not None and (self._samples or any(rows.wanted))

    def before_grammar(self, logits: Tensor, sampling_info: Any) -> _Step:
        """Take the grammar's bitmask over as `allowed`, so that the entropy is that of all tokens.

        Under SGLang's own sampler the logits [B, V] are kept: it overwrites them.
        """
        rows: Rows = sampling_info.spark
        rows.scores = None
        mask = sampling_info.grammar_mask
        rows.grammar = mask if _is_known(mask, logits) else None
        if self._samples:
            if rows.grammar is not None:
                sampling_info.grammar_mask = None
            return _Step(rows, sampling_info, None)
        return _Step(rows, sampling_info, logits.clone())

    def after_sample(self, state: _Step, token_ids: Tensor) -> _DeviceScores | None:
        """Return the scores of the sampled tokens [B], if a row wants them."""
        rows = state.rows
        if not any(rows.wanted):
            return None
        if rows.scores is None:
            logits = state.logits
            assert logits is not None, "the stock sampler ran on logits that nobody kept"
            rows.scores = draw(logits, state.info, rows, None, token_ids.long())
        found = rows.scores
        return _DeviceScores(torch.stack([found.logprob, found.entropy, found.log_kept_mass]))


class _Step(NamedTuple):
    rows: Rows
    info: Any
    logits: Tensor | None


class _DeviceScores(NamedTuple):
    """float32 [3, B] on the device, in the order of `SCORES`."""

    values: Tensor

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> _HostScores:
        return _HostScores(copy_tensor(self.values))


class _HostScores(NamedTuple):
    """The same on the host, once the copy has arrived."""

    values: Tensor

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """Append each row's scores to what its request returns."""
        columns = self.values.T.tolist()
        for req, commit, column in zip(batch.reqs, commits, columns, strict=True):
            if commit is None or req.spark is None or req.customized_info is None:
                continue
            if any(map(math.isnan, column)):
                _fail(req)
            for name, value in zip(SCORES, column, strict=True):
                req.customized_info[name].append(None if math.isnan(value) else value)


def _fail(req: Any) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req.to_finish = FINISH_ABORT(
        "the logits are not finite: no token could be drawn", 500, "InternalServerError"
    )


def draw(
    logits: Tensor, info: Any, rows: Rows, positions: Tensor | None, tokens: Tensor | None
) -> Any:
    """Sample (or score `tokens` [B]) from `logits` [B, V] as SGLang's parameters say.

    SGLang judges top-p on the whole tempered distribution, `score` on what top-k left of it: with
    both, the mass that top-k keeps is found first and top-p is scaled by it.
    """
    everything = int(info.vocab_size)
    top_k = info.top_ks.clamp(max=everything) if info.need_top_k_sampling else None
    top_p = info.top_ps.clamp(min=LEAST_TOP_P) if info.need_top_p_sampling else None
    given: dict[str, Any] = {
        # ordinary requests may ask for less than `score` takes
        "temperature": info.temperatures.view(-1).clamp(min=LEAST_TEMPERATURE),
        "top_k": top_k,
        "allowed": rows.allowed,
    }
    if top_k is not None and top_p is not None:
        zeros = torch.zeros_like(rows.seeds)
        whole = score(logits, **{**given, "top_k": None}, tokens=zeros, seed=zeros)
        kept = score(logits, **given, tokens=zeros, seed=zeros).log_kept_mass
        share = torch.exp(kept - whole.log_kept_mass)
        top_p = (top_p / share).clamp(max=1.0).float()
    return score(
        logits,
        **given,
        top_p=top_p,
        min_p=info.min_ps if info.need_min_p_sampling else None,
        seed=rows.seeds,
        position=None if positions is None else positions.to(torch.int64) + 1,
        tokens=tokens,
    )


def _is_known(mask: Any, logits: Tensor) -> bool:
    """Return whether a grammar's mask has a bit, or as outlines' a bool, for every token."""
    widths = {torch.int32: -(-logits.shape[1] // 32), torch.bool: logits.shape[1]}
    if mask is None or mask.vocab_mask.dtype not in widths:
        return False
    return list(mask.vocab_mask.shape) == [len(logits), widths[mask.vocab_mask.dtype]]


def on_runner(samples: bool) -> Hook:
    """Return the hook that gives every model runner the observer."""

    def attach(result: None, runner: Any, *_: Any, **__: Any) -> None:
        if not runner.supports_sampling_observer():
            raise SystemExit(
                "spark: --branching spark does not go with speculative or diffusion decoding: "
                "leave these flags out"
            )
        runner.sampling_observer = Observer(samples)

    return Hook("sglang.srt.model_executor.model_runner.ModelRunner.__init__", "after", attach)
