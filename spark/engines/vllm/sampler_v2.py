"""The same for model runner V2, which keeps the parameters of all requests on the device.

It needs Triton, i.e. a GPU, to be imported; `contract.py` checks the interfaces it relies on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.sampler import Sampler

from spark.engines.vllm.bitmask import obey, pack, unpack
from spark.engines.vllm.branch import branch_of
from spark.engines.vllm.sampler import RAW_MODES
from spark.engines.vllm.scores import append
from spark.engines.vllm.states import chosen
from spark_kernels import score
from spark_kernels.score.op import Scores

BUILT_IN = 3
"""Logits processors that every sampler has: bias, penalties, bad words."""


class SparkSamplerV2(Sampler):
    """Samples and scores in one read, or lets vLLM sample and scores what it drew."""

    draws: bool
    grammar: Tensor | None
    """The next batch's grammars as a bitmask int32 [B, ceil(V / 32)]."""
    changes: np.ndarray
    scored: np.ndarray
    batch: Any
    found: Scores | None

    @classmethod
    def adopt(cls, sampler: Sampler, draws: bool) -> SparkSamplerV2:
        """Turn vLLM's `sampler` into this class; `draws`: Spark draws the tokens."""
        assert type(sampler) is Sampler, f"an unknown sampler: {type(sampler)}"
        sampler.__class__ = cls
        sampler.draws = draws and sampler.logprobs_mode in RAW_MODES
        sampler.grammar = None
        rows = sampler.sampling_states.max_num_reqs
        sampler.changes, sampler.scored = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        return sampler

    def add_request(self, req_idx: int, *args: Any) -> None:
        """Take a request's parameters, the last argument, into row `req_idx`."""
        super().add_request(req_idx, *args)
        params = args[-1]
        custom = len(getattr(self, "logits_processors", ())) > BUILT_IN
        self.changes[req_idx] = custom or changes_logits(params)
        branch = branch_of(params)
        self.scored[req_idx] = branch is not None and branch.scores

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """Return vLLM's SamplerOutput for logits [B, V]; scores as columns where asked for."""
        self.batch, self.found = input_batch, None
        output = super().__call__(logits, input_batch)
        self.batch, self.grammar = None, None
        if self.found is not None and self.scored[input_batch.idx_mapping_np].any():
            output.logprobs_tensors = append(
                output.logprobs_tensors,
                self.found.logprob,
                self.found.entropy,
                self.found.log_kept_mass,
            )
        return output

    def sample(
        self, logits: Tensor, expanded_idx_mapping: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return (tokens int64 [B], logits) in the place of vLLM's method."""
        rows, where, states = expanded_idx_mapping, self.batch.idx_mapping_np, self.sampling_states
        tokens, processed = None, logits
        if not self.draws:
            stock = logits.float().clone()
            if self.grammar is not None:
                stock.masked_fill_(~unpack(self.grammar, logits.shape[1]), -torch.inf)
            tokens, processed = super().sample(stock, rows, *args, **kwargs)
        read, allowed = logits.float(), self.grammar
        temperature = states.temperature.gpu[rows]
        top_k = chosen(states.top_k, states.vocab_size, rows, where)
        top_p = chosen(states.top_p, 1.0, rows, where)
        min_p = chosen(states.min_p, 0.0, rows, where)
        if self.changes[where].any() or (min_p is not None and top_p is not None):
            # it cuts below min-p, which is judged by what the grammar allows
            judged = obey(read.clone(), allowed, min_p)
            changed = self.apply_sampling_params(judged, rows, *args, skip_top_k_top_p=True)
            forbidden, min_p = changed.isneginf(), None
            # vLLM has divided by the temperature; the scores need the logits before that
            heat = torch.where(temperature == 0, 1.0, temperature)[:, None]
            read = torch.where(forbidden, read, changed * heat)
            bits = pack(~forbidden)
            allowed = bits if allowed is None else bits & allowed
        # the position is that of the last token read; the draw belongs to the one after it
        position = self.batch.positions[self.batch.logits_indices].long() + 1
        self.found = score(
            read,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            allowed=allowed,
            seed=states.seeds.gpu[rows],
            position=position,
            tokens=tokens,
        )
        return self.found.tokens.clamp_(min=0) if tokens is None else tokens, processed


def changes_logits(params: Any) -> bool:
    """Return whether vLLM may change a logit of a request with these SamplingParams."""
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
