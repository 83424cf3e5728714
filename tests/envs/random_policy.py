"""A policy that writes nothing but random admissible commands, on the embedded engine."""

from __future__ import annotations

import asyncio
import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from spark import LocalEngine
from spark.recipes.tokenizer import ASSISTANT, TAGS, TEMPLATE, USER
from spark.rollout import Chat, RolloutConfig, rollout

UNKNOWN = "<unk>"


def tokenizer():
    """Return one token a character, so that every environment's texts can be written."""
    special = [UNKNOWN, USER, ASSISTANT, *TAGS]
    words = {word: index for index, word in enumerate([*special, *string.printable])}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        additional_special_tokens=special[1:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def model(words):
    """Return a transformer that opens an action where it is to speak, and is unsure elsewhere."""
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=16_384,
        tie_word_embeddings=False,
    )
    made = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        made.model.embed_tokens.weight[:, 1] = 1.0
        speaking = words.convert_tokens_to_ids(ASSISTANT)
        made.model.embed_tokens.weight[speaking] = torch.eye(8)[0]
        made.lm_head.weight[words.convert_tokens_to_ids("<action>"), 0] = 50.0
    return made


def roll(source, tasks, **options):
    """Return trees of random trajectories that fork at random, checked for failures."""
    words = tokenizer()
    config = RolloutConfig(
        **{"leaves": 4, "roots": 2, "horizon": 5, "max_tokens": 120}
        | {"rule": "random", "probability": 0.7}
        | options
    )
    trees = asyncio.run(
        rollout(
            tasks,
            engine=LocalEngine(model(words), num_blocks=4096, tokenizer=words),
            source=source,
            chat=Chat(words),
            config=config,
            seed=0,
        )
    )
    for tree in trees:
        assert tree.info["errors"] == []
        assert tree.info["forks"] > 0
        assert not any(node.invalid for node in tree.nodes)
        assert 1 < len(tree.leaves()) <= config.leaves
    return trees
