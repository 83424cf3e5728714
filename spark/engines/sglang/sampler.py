"""`--sampling-backend spark`: one read of the logits gives the token and all its scores."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spark.engines.sglang.hooks import Hook
from spark.engines.sglang.rows import Rows
from spark.engines.sglang.scores import draw

log = logging.getLogger(__name__)
NAME = "spark"


def make_sampler() -> Any:
    """Return a sampler of SGLang's that draws with the `score` op."""
    from sglang.srt.layers.sampler import Sampler

    class SparkSampler(Sampler):
        """Falls back on SGLang's sampler for batches that ask for something `score` lacks."""

        def forward(
            self,
            logits_output: Any,
            sampling_info: Any,
            return_logprob: bool,
            top_logprobs_nums: list[int],
            token_ids_logprobs: list[list[int]],
            positions: Tensor,
            **more: Any,
        ) -> Tensor:
            rows: Rows | None = getattr(sampling_info, "spark", None)
            logits = logits_output.next_token_logits
            scored = rows is not None and any(rows.wanted)
            missing = lacking(self, logits, sampling_info, more)
            if rows is None or missing:
                say_once(missing or "sampling tensors made without requests")
            # where nothing is drawn and nothing told, the largest logit is the answer
            if rows is None or missing or (sampling_info.is_all_greedy and not scored):
                before = logits.clone() if scored else logits
                if rows is not None and rows.grammar is not None:
                    rows.grammar.apply(logits)
                tokens: Tensor = super().forward(
                    logits_output,
                    sampling_info,
                    return_logprob,
                    top_logprobs_nums,
                    token_ids_logprobs,
                    positions,
                    **more,
                )
                if rows is not None and scored:
                    rows.scores = draw(before, sampling_info, rows, None, tokens.long())
                return tokens
            logits = self._preprocess_logits(logits, sampling_info)
            rows.scores = draw(logits, sampling_info, rows, positions, None)
            # a row without a valid token: its request is aborted where the scores arrive
            tokens = rows.scores.tokens.clamp(min=0)
            if return_logprob:
                if rows.grammar is not None:
                    # what requests are told is what SGLang would tell them
                    rows.grammar.apply(logits)
                if not original_logprobs():
                    logits = logits / sampling_info.temperatures
                logprobs = torch.log_softmax(logits, dim=-1)
                self.output_logprob_processor.compute_logprobs(
                    logprobs, top_logprobs_nums, token_ids_logprobs, tokens
                ).write_output_to(logits_output)
            self._sync_token_ids_across_tp(tokens, sampling_info)
            return tokens

    return SparkSampler()


def original_logprobs() -> bool:
    """Return whether SGLang was told to return log-probabilities at temperature 1."""
    from sglang.srt.layers import sampler

    return bool(sampler.SGLANG_RETURN_ORIGINAL_LOGPROB)


def lacking(sampler: Any, logits: Tensor, info: Any, more: dict[str, Any]) -> str:
    """Return what a batch needs and `score` does not do, or ""."""
    if logits.dtype not in (torch.float32, torch.bfloat16):
        return f"{logits.dtype} logits"
    # since 0.5.20
    if getattr(info, "sampling_mask_batch_indices", None) is not None:
        return "return_sampling_mask"
    if sampler.rl_on_policy_target is not None:
        return "--rl-on-policy-target"
    return "a watermark" if more.get("logprob_logits") is not None else ""


@cache
def say_once(missing: str) -> None:
    """Log that batches with `missing` are left to SGLang's sampler."""
    log.warning("%s: such batches are sampled by SGLang's own sampler", missing)


def on_create(original: Callable[..., Any], backend: str | None = None) -> Any:
    """A model runner makes its sampler."""
    return original(NAME)


def hooks() -> list[Hook]:
    """Register the sampler and return the hook that selects it.

    The name in SGLang's configuration stays that of the platform's own sampler, to fall back on.
    """
    from sglang.srt.layers.sampler import register_sampler_backend

    register_sampler_backend(NAME, make_sampler)
    return [Hook("sglang.srt.layers.sampler.create_sampler", "around", on_create)]
