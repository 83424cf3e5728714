"""Models are trained with their own scores, or not at all; dropout is no part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_trees import VOCAB, random_tree
from test_pack import packed, unpacked_logprobs

from spark.core import Tree
from spark.train.config import LossConfig
from spark.train.exact import take_packed_rows
from spark.train.loss import policy_loss
from spark.train.policy import token_logprobs
from spark.train.trainer import TreeTrainer, training_arguments

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **more)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("family", "more"),
    [("Qwen3", {"head_dim": 8}), ("Granite", {"logits_scaling": 8.0}), ("Cohere", {})],
)
def test_factors_of_the_head_are_applied(
    family: str, more: dict[str, Any], temperature: float
) -> None:
    model = model_of(family, **more)
    tree: Tree = random_tree(3, nodes=8)
    want = unpacked_logprobs(model, tree, temperature)
    take_packed_rows(model)
    (row,) = packed([tree])
    found = token_logprobs(model, row, temperature).tolist()
    assert sorted(found) == pytest.approx(sorted(want.values()), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_models_that_packing_would_change_are_refused(family: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{family}ForCausalLM cannot be trained on trees.*nats"):
        take_packed_rows(model_of(family, **more))


def test_dropout_takes_no_part(tmp_path: Path) -> None:
    model = model_of("Starcoder2", residual_dropout=0.1, embedding_dropout=0.1)
    (row,) = packed([random_tree(3, nodes=8)])
    differences = []

    def batches(step: int) -> list[dict[str, Any]]:
        return [{"row": row, "old": trainer.logprobs(row)}]

    def logs(logprobs: torch.Tensor, example: dict[str, Any]) -> dict[str, torch.Tensor]:
        differences.append(float((logprobs - example["old"]).abs().max()))
        return {}

    trainer = TreeTrainer(
        model,
        training_arguments(tmp_path, steps=3, lr=0.0, seed=0, bf16=False),
        batches=batches,
        loss=lambda example: policy_loss(example["old"], None, row, LossConfig(kl=0.0)),
        logs=logs,
    )
    trainer.train()
    assert len(differences) == 3 and max(differences) < 1e-5
