"""The same for model runner V2, which keeps the parameters of all requests on the device.

Needs Triton, i.e. a GPU, to be imported; `contract.py` checks the interfaces it relies on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.sampler import Sampler

from spark.engines.vllm.bitmask import pack, unpack
from spark.engines.vllm.branch import branch_of
from spark.engines.vllm.sampler import RAW_MODES, cut_below_min_p
from spark.engines.vllm.scores import append
from spark_kernels import score
from spark_kernels.score.op import Scores

BUILT_IN = 3
"""Logits processors of every sampler: bias (min_tokens, allowed ids), penalties, bad words."""


class SparkSamplerV2(Sampler):
    """Samples and scores in one read, or lets vLLM sample and scores what it drew."""

    @classmethod
    def adopt(cls, sampler: Sampler, draws: bool) -> SparkSamplerV2:
        """Turn vLLM's `sampler` into this class; `draws`: Spark draws the tokens."""
        assert type(sampler) is Sampler, f"an unknown sampler: {type(sampler)}"
        sampler.__class__ = cls
        sampler.draws = draws and sampler.logprobs_mode in RAW_MODES
        sampler.grammar = None
        rows = len(sampler.needs_logits_processing)
        sampler.changes, sampler.scored = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        return sampler

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Take a request's parameters into row `req_idx`."""
        super().add_request(req_idx, sampling_params)
        custom = len(self.logits_processors) > BUILT_IN
        self.changes[req_idx] = custom or changes_logits(sampling_params)
        branch = branch_of(sampling_params)
        self.scored[req_idx] = branch is not None and branch.scores

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """Return vLLM's SamplerOutput for logits [B, V]; scores as columns where asked for."""
        self.found: Scores | None = None
        output = super().__call__(logits, input_batch)
        self.grammar = None
        if self.found is not None and self.scored[input_batch.idx_mapping_np].any():
            output.logprobs_tensors = append(
                output.logprobs_tensors,
                self.found.logprob,
                self.found.entropy,
                self.found.log_kept_mass,
            )
        return output

    def sample(
        self,
        logits: Tensor,
        expanded_idx_mapping: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: np.ndarray,
        pos: Tensor,
        input_ids: Tensor,
        expanded_local_pos: Tensor,
        seq_lens_upper_bound_np: np.ndarray,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return (tokens int64 [B], logits) in the place of vLLM's method."""
        tokens = None
        if not self.draws:
            stock = logits.float().clone()
            if self.grammar is not None:
                stock.masked_fill_(~unpack(self.grammar, logits.shape[1]), -torch.inf)
            tokens, processed = super().sample(
                stock,
                expanded_idx_mapping,
                idx_mapping,
                idx_mapping_np,
                pos,
                input_ids,
                expanded_local_pos,
                seq_lens_upper_bound_np,
                **kwargs,
            )
        states, rows, allowed = self.sampling_states, expanded_idx_mapping, self.grammar
        temperature = states.temperature.gpu[rows]
        top_k, top_p = states.get_top_k_top_p(rows, idx_mapping_np)
        min_p = states.min_p.gpu[rows] if states.min_p.np[idx_mapping_np].any() else None
        read = logits.float()
        if self.changes[idx_mapping_np].any() or (min_p is not None and top_p is not None):
            context = LogitsContext(
                expanded_idx_mapping=expanded_idx_mapping,
                idx_mapping=idx_mapping,
                idx_mapping_np=idx_mapping_np,
                expanded_local_pos=expanded_local_pos,
                input_ids=input_ids,
                pos=pos,
                seq_lens_upper_bound_np=seq_lens_upper_bound_np,
            )
            changed = read.clone()
            for processor in self.logits_processors:
                changed = processor.apply(changed, context)
            self.thinking_budget_state.apply(changed, context)
            forbidden = changed.isneginf()
            if min_p is not None and top_p is not None:
                forbidden |= cut_below_min_p(changed, temperature, min_p)
                min_p = None
            bits = pack(~forbidden)
            allowed = bits if allowed is None else bits & allowed
            read = torch.where(forbidden, read, changed)
        self.found = score(
            read,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            allowed=allowed,
            seed=states.seeds.gpu[rows],
            # `pos` is that of the last token read; the draw belongs to the one after it
            position=pos.long() + 1,
            tokens=tokens,
        )
        if tokens is not None:
            return tokens, processed
        return self.found.tokens.clamp_(min=0), logits


def changes_logits(params: Any) -> bool:
    """Return whether vLLM changes a logit of a request with these SamplingParams."""
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words
        or params.min_tokens
        or getattr(params, "thinking_token_budget", None)
    )
