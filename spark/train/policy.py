"""Log-probabilities of the trained tokens of a packed row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from spark.train.pack import Row

CHUNK = 4096
"""Trained tokens whose logits exist at the same time."""


def token_logprobs(model: PreTrainedModel, row: Row, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of every trained token of `row` as float32 [N].

    It is that of the constrained draw: normalised over the tokens allowed there, at
    `temperature`. `model` must have been given to `use_tree_attention`.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    hidden = decoder(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        use_cache=False,
        tree=row,
    ).last_hidden_state[0]
    softcap = getattr(model.config, "final_logit_softcapping", None)
    tokens = row.tokens[row.targets]
    bounds = torch.searchsorted(
        row.allowed_target, torch.arange(0, len(tokens) + CHUNK, CHUNK, device=tokens.device)
    )
    chunks = []
    for number, first in enumerate(range(0, len(tokens), CHUNK)):
        allowed = slice(int(bounds[number]), int(bounds[number + 1]))

        # recomputed in the backward pass, so that logits exist one chunk at a time
        chunks.append(
            checkpoint(
                _chunk_logprobs,
                head,
                hidden[row.pred[first : first + CHUNK]],
                tokens[first : first + CHUNK],
                row.allowed_target[allowed] - first,
                row.allowed_token[allowed],
                temperature,
                softcap,
                use_reentrant=False,
            )
        )
    return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=torch.float32)


def _chunk_logprobs(
    head: torch.nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    allowed_target: Tensor,
    allowed_token: Tensor,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """Return the log-probability of `tokens` [C] predicted from `hidden` [C, H]."""
    logits = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return chosen - log_normaliser(logits, allowed_target, allowed_token)


def log_normaliser(logits: Tensor, allowed_target: Tensor, allowed_token: Tensor) -> Tensor:
    """Return the log-sum-exp of every row of `logits` [C, V] over its allowed tokens, as [C].

    A row without an entry in `allowed_target` (int64 [K], ascending) is normalised over all V.
    """
    whole = logits.logsumexp(1)
    if not len(allowed_target):
        return whole
    values = logits[allowed_target, allowed_token]
    peak = torch.full_like(whole, float("-inf")).scatter_reduce(
        0, allowed_target, values.detach(), "amax"
    )
    limited = torch.zeros_like(whole, dtype=torch.bool).index_fill(0, allowed_target, True)
    peak = peak.where(limited, 0.0)
    total = torch.zeros_like(whole).index_add(
        0, allowed_target, (values - peak[allowed_target]).exp()
    )
    # the unused branch of `where` still gets a gradient: keep it finite
    return torch.where(limited, total.where(limited, 1.0).log() + peak, whole)
