"""The driver on the embedded engine grows the trees it grows on the reference engine."""

from __future__ import annotations

import asyncio
import random
from functools import cache
from typing import Any

import bigram
import pytest
import torch
from corridor import Corridor, CorridorSource
from reference_engine import ReferenceEngine
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from spark import LocalEngine
from spark.core import Tree
from spark.engines.base import Engine
from spark.rollout import Chat, RolloutConfig, RolloutError, rollout

TASKS = ["corridor/4/5", "corridor/3/2", "corridor/5/9"]


@cache
def policy() -> PreTrainedModel:
    """Return a tiny transformer that has learnt to write decisions."""
    torch.manual_seed(0)
    words = bigram.tokenizer()
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    choose = random.Random(0)
    turns = [
        f"<user> you are in room {room} . <end> {said} <end> "
        for room in range(4)
        for said in bigram.DECISIONS
    ]
    texts = ["".join(choose.choices(turns, k=8)) for _ in range(16)]
    batch = words(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def next_logits(tokens: list[int]) -> torch.Tensor:
    """Return the logits [V] after `tokens`, everything computed from scratch."""
    model = policy()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0, -1]


def local(num_blocks: int = 512) -> LocalEngine:
    return LocalEngine(policy(), num_blocks=num_blocks, tokenizer=bigram.tokenizer())


def roll(engine: Engine, config: RolloutConfig, source: CorridorSource | None = None) -> list[Tree]:
    job = rollout(
        TASKS,
        engine=engine,
        source=source or CorridorSource(),
        chat=Chat(bigram.tokenizer()),
        config=config,
        seed=5,
    )
    return asyncio.run(job)


def assert_same(ours: list[Tree], reference: list[Tree]) -> None:
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.info["errors"] == theirs.info["errors"] == []
        assert mine.info["leaves"] == theirs.info["leaves"]
        for a, b in zip(mine.nodes, theirs.nodes, strict=True):
            for name in ("parent", "turn", "tokens", "sampled", "allowed", "trigger", "reward"):
                assert getattr(a, name) == getattr(b, name)
            for name in ("logprobs", "log_kept_mass", "entropies"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=2e-5)


CASES = {
    "next": RolloutConfig(leaves=6, roots=2, horizon=5, max_tokens=12),
    "flagged": RolloutConfig(leaves=6, roots=2, horizon=5, max_tokens=12, branch_at="flagged"),
    "within": RolloutConfig(leaves=6, roots=2, horizon=5, max_tokens=12, branch_at="within"),
    "entropy": RolloutConfig(
        leaves=6, roots=2, horizon=4, rule="entropy", branch_at="within", entropy_threshold=0.8
    ),
    "chains": RolloutConfig(leaves=4, rule="none", horizon=4, top_p=0.9, temperature=0.7),
    "greedy": RolloutConfig(leaves=1, roots=1, rule="none", horizon=4, temperature=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_embedded_engine_agrees_with_the_reference(case: str) -> None:
    reference = ReferenceEngine(next_logits, bigram.tokenizer())
    expected = roll(reference, CASES[case])
    engine = local()
    trees = roll(engine, CASES[case])
    assert_same(trees, expected)
    branches = CASES[case].rule != "none"
    assert branches == any(tree.info["forks"] for tree in trees)
    ours, theirs = engine.stats(), reference.stats()
    for name in ("generated", "reused", "forks", "prefilled", "recomputed"):
        assert ours[name] == theirs[name], name
    assert ours["blocks_in_use"] == 0


def test_a_pool_too_small_for_all_changes_nothing() -> None:
    config = CASES["next"]
    roomy, tight = local(), local(num_blocks=24)
    assert_same(roll(tight, config), roll(roomy, config))
    assert tight.stats()["preemptions"] > 0
    assert tight.stats()["blocks_in_use"] == 0


class Talkative(Corridor):
    """Says more than the model can read."""

    def reset(self, task: str, seed: int = 0) -> Any:
        _, info = super().reset(task, seed)
        return "room " * 600, info


def test_a_prompt_longer_than_the_context_is_one_clear_error() -> None:
    engine = local()
    with pytest.raises(RolloutError, match=r"prompt of 603 tokens exceeds .* context of 512"):
        roll(engine, CASES["next"], CorridorSource(Talkative))
    assert engine.stats()["blocks_in_use"] == 0


def test_an_episode_ends_where_the_context_does() -> None:
    config = RolloutConfig(leaves=2, roots=2, rule="none", horizon=60, max_tokens=12)
    trees = roll(local(), config)
    leaves = [(tree, leaf) for tree in trees for leaf in tree.info["leaves"]]
    assert any(leaf["end"] == "context" for _, leaf in leaves)
    assert not any(tree.info["errors"] for tree in trees)
    for tree, leaf in leaves:
        assert sum(len(tree.nodes[index].tokens) for index in tree.path(leaf["node"])) <= 512
