"""The cold start: what is imitated, what is not, and that a seed repeats it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from spark.recipes import RECIPES
from spark.recipes.config import ColdStartConfig, ModelConfig
from spark.recipes.policy import load_policy
from spark.recipes.tokenizer import train_tokenizer
from spark.rollout.chat import Chat, command_of
from spark.train.config import SftConfig
from spark.train.sft import fit

pytest.importorskip("alfworld")

from spark.envs.expert import Episode, ExpertStep
from spark.recipes.cold_start import REFUSED, decision, demonstration, sft

STEPS = [
    ExpertStep(
        "You see a drawer 1 and a bed 1. Your task is to: put a pen in bed.",
        "go to drawer 1",
        True,
        "find pen",
        ("go to drawer 1", "go to bed 1"),
    ),
    ExpertStep(
        "You arrive at drawer 1. The drawer 1 is closed.",
        "open drawer 1",
        False,
        "find pen",
        ("open drawer 1", "go to bed 1"),
    ),
]
EPISODE = Episode(steps=STEPS, won=False, ending="You open the drawer 1.")


@pytest.fixture(scope="module")
def chat() -> Chat:
    texts = [f"{step.observation} {decision(step)}" for step in STEPS]
    return Chat(train_tokenizer([*texts, EPISODE.ending, REFUSED, "21"]))


def test_decisions_flag_where_the_expert_searches() -> None:
    assert decision(STEPS[0]) == "pen <explore> find </explore> <action> go to drawer 1 </action>"
    assert decision(STEPS[1]) == "pen <think> find </think> <action> open drawer 1 </action>"


def test_demonstration_weighs_decisions_observations_and_refused_commands(chat: Chat) -> None:
    config = ColdStartConfig(invalid_share=1.0, observation_weight=0.25)
    tree, terms = demonstration(EPISODE, chat, config, random.Random(0))
    weights = [node_terms[0].weight if node_terms else 0.0 for node_terms in terms]
    assert weights == [0.0, 0.0, 1.0, 0.25, 0.0, 1.0, 0.25]
    texts = [chat.decode(node.tokens) for node in tree.nodes]
    assert [texts[2], texts[5]] == [decision(step) for step in STEPS]
    for place, step in ((1, STEPS[0]), (4, STEPS[1])):
        assert command_of(texts[place]) not in step.admissible
        assert "nothing happens" in texts[place]
    # the whole is one append-only stream, as a rollout would have produced it
    assert [node.parent for node in tree.nodes] == [None, 0, 1, 2, 3, 4, 5]
    assert texts[0] == chat.decode(chat.prompt(STEPS[0].observation))


def test_a_cold_start_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes=0 must be >= 1"):
        ColdStartConfig(episodes=0)
    with pytest.raises(ValueError, match="max_steps=0 must be >= 1"):
        ColdStartConfig(max_steps=0)
    with pytest.raises(ValueError, match="steps=0 must be >= 1"):
        SftConfig(steps=0)
    with pytest.raises(ValueError, match="no demonstrations"):
        fit(torch.nn.Linear(1, 1), [], SftConfig(steps=1), seed=0, folder=tmp_path)


def test_small_cold_start_repeats_and_acts(tmp_path: Path) -> None:
    recipe = RECIPES["first_light_smoke"]()
    small = dataclasses.replace(recipe.cold_start, episodes=4, fit=SftConfig(steps=2))
    recipe = dataclasses.replace(recipe, cold_start=small)
    first, second = sft(recipe, tmp_path / "a"), sft(recipe, tmp_path / "b")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    assert len(weights[0]) < 4_000_000
    model, tokenizer = load_policy(ModelConfig(path=str(first)))
    assert model.config.vocab_size == len(tokenizer)
