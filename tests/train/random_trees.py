"""Seeded random trees and models for the tests of spark.train."""

from __future__ import annotations

import random

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config
from transformers.models.gemma2 import Gemma2Config

from spark.core import Node, Tree

VOCAB = 40


def random_tree(seed: int, nodes: int = 9, constrained: bool = True) -> Tree:
    rng = random.Random(seed)
    tree = Tree(task=f"t{seed}", seed=seed)
    for index in range(nodes):
        parent = None if index == 0 else rng.randrange(max(0, index - 4), index)
        count = rng.randint(3, 6) if index == 0 else rng.randint(0, 5)
        tokens = [rng.randrange(VOCAB) for _ in range(count)]
        sampled = [index > 0 and rng.random() < 0.7 for _ in tokens]
        allowed = {
            offset: sorted({token, *rng.sample(range(VOCAB), rng.randint(0, 3))})
            for offset, token in enumerate(tokens)
            if constrained and sampled[offset] and rng.random() < 0.5
        }
        logprobs = [-rng.random() * 3 if flag else 0.0 for flag in sampled]
        tree.nodes.append(
            Node(
                parent=parent,
                turn=index - 1,
                tokens=tokens,
                sampled=sampled,
                logprobs=logprobs,
                log_kept_mass=[0.0] * count,
                entropies=[0.0] * count,
                allowed=allowed,
            )
        )
    for leaf in tree.leaves():
        tree.nodes[leaf].done = True
        tree.nodes[leaf].reward = float(rng.random() < 0.5)
        tree.nodes[leaf].invalid = rng.random() < 0.3
    return tree


def tiny_model(seed: int = 0, family: str = "qwen3") -> PreTrainedModel:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    if family == "gemma2":
        config = Gemma2Config(**shape, sliding_window=7, query_pre_attn_scalar=8)
    else:
        config = Qwen3Config(**shape, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    # the default initialisation is too flat for a test to tell a wrong mask from a right one
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
