"""vLLM's sampler of model runner V1 with Spark's `score` in its place.

One read of the logits gives the tokens and their scores. What changes logits one by one (penalties,
bias, custom processors) is left to vLLM and done before that read; what forbids tokens (grammar,
allowed ids, bad words, min_tokens) becomes a bitmask, so that the scores stay those of the whole
vocabulary and the kept mass says what was forbidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.sampler import Sampler

from spark.engines.vllm.bitmask import obey, pack, unpack
from spark.engines.vllm.rows import Rows
from spark.engines.vllm.scores import append
from spark_kernels import score
from spark_kernels.score.op import Scores

logger = init_logger(f"vllm.{__name__}")

RAW_MODES = ("raw_logprobs", "raw_logits")


class SparkSampler(Sampler):
    """Samples and scores in one read, or lets vLLM sample and scores what it drew."""

    rows: Rows
    draws: bool
    grammar: Tensor | None
    """The next batch's grammars as a bitmask int32 [B, ceil(V / 32)]."""

    @classmethod
    def adopt(cls, sampler: Sampler, runner: Any, draws: bool) -> SparkSampler:
        """Turn vLLM's `sampler` into this class; `draws`: Spark draws the tokens."""
        assert type(sampler) is Sampler, f"an unknown sampler: {type(sampler)}"
        sampler.__class__ = cls
        sampler.rows = Rows(runner)
        sampler.draws = draws
        sampler.grammar = None
        return sampler

    def forward(self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's SamplerOutput for logits [B, V]; scores as columns where asked for."""
        rows, grammar, self.grammar = self.rows, self.grammar, None
        if not rows.refresh(sampling_metadata) or args or kwargs:
            # a dummy batch of vLLM's profiling, or a call from speculative decoding
            return super().forward(logits, sampling_metadata, *args, **kwargs)
        if sampling_metadata.all_greedy and not rows.scored:
            # nothing to draw and nothing to tell: the largest logit is the answer
            return self._stock(logits, sampling_metadata, grammar)
        if self.takes(sampling_metadata):
            read, allowed = self._masked(logits, sampling_metadata, grammar)
            found = self._score(read, allowed)
            tokens = found.tokens.clamp_(min=0)
            logprobs = self._logprobs(logits, sampling_metadata, grammar, tokens)
            output = SamplerOutput(found.tokens.int().unsqueeze(-1), logprobs)
        else:
            output = self._stock(logits, sampling_metadata, grammar)
            if not rows.scored:
                return output
            read, allowed = self._masked(logits, sampling_metadata, grammar)
            found = self._score(read, allowed, output.sampled_token_ids[:, 0].long())
        if rows.scored:
            output.logprobs_tensors = append(
                output.logprobs_tensors, found.logprob, found.entropy, found.log_kept_mass
            )
        return output

    def takes(self, metadata: Any) -> bool:
        """Return whether Spark draws the tokens; said once where it cannot."""
        reason = unsupported(self, metadata) if self.draws else None
        if reason is not None:
            logger.warning_once("spark: %s: vLLM's own sampler draws the tokens", reason)
        return self.draws and reason is None

    def _score(
        self, logits: Tensor, allowed: Tensor | None, tokens: Tensor | None = None
    ) -> Scores:
        rows = self.rows
        return score(
            logits,
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            min_p=None if rows.min_p_first else rows.min_p,
            allowed=allowed,
            seed=rows.seed,
            position=rows.positions(),
            tokens=tokens,
        )

    def _masked(self, logits: Tensor, metadata: Any, grammar: Tensor | None) -> tuple[Any, Any]:
        """Return (logits float32 [B, V], allowed bitmask or None) that `score` takes."""
        logits = logits.float()
        rows = self.rows
        if not rows.min_p_first and not changes_logits(metadata):
            return logits, grammar
        changed = self.apply_logits_processors(logits.clone(), metadata, False)
        forbidden = changed.isneginf()
        if rows.min_p is not None and rows.min_p_first:
            judged = obey(changed, grammar, rows.min_p)
            forbidden |= cut_below_min_p(judged, rows.temperature, rows.min_p)
        bits = pack(~forbidden)
        read = torch.where(forbidden, logits, changed)
        return read, bits if grammar is None else bits & grammar

    def _stock(self, logits: Tensor, metadata: Any, grammar: Tensor | None) -> Any:
        logits = logits.float()
        if self.rows.scored:
            # it works in place, and the scores need the logits as they were
            logits = logits.clone()
        if grammar is not None:
            logits.masked_fill_(~unpack(grammar, logits.shape[1]), -math.inf)
        return super().forward(logits, metadata)

    def _logprobs(
        self, logits: Tensor, metadata: Any, grammar: Tensor | None, tokens: Tensor
    ) -> Any:
        """Return the LogprobsTensors that requests asked vLLM for, or None."""
        wanted, specific = metadata.max_num_logprobs, metadata.logprob_token_ids
        if wanted is None and not specific:
            return None
        raw = logits.float()
        if grammar is not None:
            # vLLM masks before it samples, and tells what is left
            raw = raw.masked_fill(~unpack(grammar, raw.shape[1]), -math.inf)
        if self.logprobs_mode == "raw_logprobs":
            raw = self.compute_logprobs(raw)
        if specific:
            return self.gather_specific_token_logprobs(raw, specific, tokens)
        if wanted == -1:
            # the whole vocabulary goes without ids and ranks
            return LogprobsTensors(torch.empty(0), raw, torch.empty(0))
        return self.gather_logprobs(raw, wanted, token_ids=tokens)


def unsupported(sampler: Sampler, metadata: Any) -> str | None:
    """Return what of this batch `score` cannot do, or None."""
    if sampler.logprobs_mode not in RAW_MODES:
        return f"logprobs_mode={sampler.logprobs_mode}"
    for processor in metadata.logitsprocs.argmax_invariant:
        if not isinstance(processor, MinPLogitsProcessor):
            return f"{type(processor).__name__} follows the temperature"
    return None


def changes_logits(metadata: Any) -> bool:
    """Return whether vLLM would change a logit of this batch before sampling."""
    holder = metadata.thinking_budget_state_holder
    return (
        metadata.allowed_token_ids_mask is not None
        or bool(metadata.bad_words_token_ids)
        or not metadata.no_penalties
        or any(active(processor) for processor in metadata.logitsprocs.non_argmax_invariant)
        or (holder is not None and holder.has_tracked_requests())
    )


def active(processor: Any) -> bool:
    """Return whether a logits processor has anything to do in this batch."""
    if isinstance(processor, MinTokensLogitsProcessor):
        return bool(processor.min_toks)
    if isinstance(processor, LogitBiasLogitsProcessor):
        return bool(processor.biases)
    return True


def cut_below_min_p(logits: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Return bool [B, V]: what min-p removes. vLLM lets top-p judge only what is left."""
    tempered = logits / torch.where(temperature == 0, 1.0, temperature)[:, None]
    return tempered < tempered.amax(-1, keepdim=True) + min_p.log()[:, None]
