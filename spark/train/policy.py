"""Scores of the trained tokens of a packed row, and a loss of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spark.train.pack import Row
from spark_kernels import HeadLoss, head_loss
from spark_kernels.head_loss import Loss


def token_logprobs(model: PreTrainedModel, row: Row, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of every trained token of `row` as float32 [N], without a graph.

    It is that of the constrained draw: normalised over the tokens allowed there, at
    `temperature`. `model` must have been given to `use_tree_attention`; it is put into eval mode.
    """
    with torch.no_grad():
        return _scores(model, row, None, temperature).logprob


def token_loss(model: PreTrainedModel, row: Row, loss: Loss, temperature: float = 1.0) -> HeadLoss:
    """Return the sum of `loss` over the trained tokens of `row`, differentiable, and their scores.

    Args:
        model: as above.
        row: the packed row, on the CPU.
        loss: takes log-probabilities and entropies [C], of the constrained draw, and which of the
            N tokens they are; returns their share. `policy_loss` makes one.
        temperature: of the draw.
    """
    return _scores(model, row, loss, temperature)


def check_head(model: PreTrainedModel) -> nn.Linear:
    """Return the LM head. Raises ValueError when it is no plain linear layer, or where adapters of
    the input embedding would change it as they are merged.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            f"the LM head must be a linear layer without bias, got {type(head).__name__}: "
            "leave it out of the LoRA targets"
        )
    adapted = getattr(model.get_input_embeddings(), "base_layer", None)
    if adapted is not None and adapted.weight is head.weight:
        raise ValueError(
            "the LM head has the weights of the input embedding: leave that out of the LoRA targets"
        )
    return head


def _scores(model: PreTrainedModel, row: Row, loss: Loss | None, temperature: float) -> HeadLoss:
    # with dropout a token would not score the same before and after an update of nothing
    model.eval()
    head = check_head(model)
    moved = row.to(head.weight.device)
    config = model.config
    # Cohere multiplies its logits, Granite divides them
    factor = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    hidden = model.get_decoder()(
        input_ids=moved.tokens[None],
        position_ids=moved.positions[None],
        use_cache=False,
        tree=moved,
    ).last_hidden_state[0]
    return head_loss(
        hidden,
        head.weight,
        moved.pred,
        moved.tokens[moved.targets],
        loss,
        temperature=temperature / factor,
        softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        # cut where the row lies: on the CPU nobody waits for the device
        allowed=(row.allowed_target, row.allowed_token) if len(row.allowed_target) else None,
    )
