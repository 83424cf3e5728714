"""Whether packed rows give the tokens of a model the scores that the model itself gives them."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark.core import Node, Tree
from spark.train.attention import NAME, use_tree_attention
from spark.train.credit import Term
from spark.train.pack import pack
from spark.train.policy import token_logprobs

PROMPT, BRANCHES = 6, (4, 5)
"""Tokens of the tree that is tried."""


def take_packed_rows(model: PreTrainedModel) -> None:
    """Make `model` take packed rows. Raises ValueError where they would give it other scores.

    That is so where more than attention carries something from token to token (convolutions,
    linear attention), where attention has sinks, or the head a factor that nobody knows of.
    """
    if model.config._attn_implementation == NAME:
        # it does already, and has lost the attention to compare with
        return
    tree = _tree(model.config.get_text_config().vocab_size)
    with torch.no_grad():
        want = torch.cat([_own_logprobs(model.eval(), tree, node) for node in (1, 2)])
    use_tree_attention(model)
    trained = [Term(advantage=1.0, weight=1.0)]
    (row,) = pack([tree], [[[], trained, trained]], PROMPT + sum(BRANCHES))
    off = float((token_logprobs(model, row).cpu() - want.float()).abs().max())
    if off > (0.01 if want.dtype == torch.float32 else 0.3):
        raise ValueError(
            f"{type(model).__name__} cannot be trained on trees: in a packed row a token's "
            f"log-probability is off by {off:.2g} nats; use a model whose tokens meet in plain "
            "attention only"
        )


def _tree(vocab_size: int) -> Tree:
    """Return a prompt with two branches of random tokens."""
    draw = random.Random(0)

    def node(count: int, parent: int | None) -> Node:
        zeros = [0.0] * count
        return Node(
            parent=parent,
            turn=-1 if parent is None else 0,
            tokens=draw.choices(range(vocab_size), k=count),
            sampled=[parent is not None] * count,
            logprobs=zeros,
            log_kept_mass=zeros,
            entropies=zeros,
        )

    return Tree(task="", seed=0, nodes=[node(PROMPT, None), *(node(n, 0) for n in BRANCHES)])


def _own_logprobs(model: PreTrainedModel, tree: Tree, index: int) -> Tensor:
    """Return the log-probabilities of the tokens of node `index`, by the model's own forward."""
    branch = tree.nodes[index].tokens
    tokens = torch.tensor([tree.nodes[0].tokens + branch], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(1, tokens[0, PROMPT:, None])[:, 0].cpu()
