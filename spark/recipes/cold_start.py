"""The cold start: a small model that imitates the environment's expert, from nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from spark.core import Node, Tree
from spark.envs.expert import Demonstrator, Episode, ExpertStep
from spark.recipes.config import ColdStartConfig, Recipe
from spark.recipes.session import make_source
from spark.recipes.tokenizer import train_tokenizer
from spark.rollout.chat import Chat
from spark.train.credit import Term
from spark.train.sft import Demonstration, fit

REFUSED = "Nothing happens."
NUMBERS = " ".join(map(str, range(60)))


@dataclass(kw_only=True, slots=True, frozen=True)
class SftProgress:
    """One step of `spark sft`, for live display."""

    phase: str
    """"episodes" or "train"."""
    step: int
    steps: int
    loss: float | None = None
    """Weighted negative log-likelihood of the last batch, nats a token."""


def decision(step: ExpertStep) -> str:
    """Return an expert's step as the policy writes it: `<explore>` where it looks for something.

    The thing comes first: what to do about it is easier to tell once it has been named.
    """
    tag = "explore" if step.explorative else "think"
    verb, _, thing = step.subgoal.partition(" ")
    return f"{thing} <{tag}> {verb} </{tag}> <action> {step.action} </action>"


def sft(
    recipe: Recipe, folder: Path, on_progress: Callable[[SftProgress], None] = lambda _: None
) -> Path:
    """Train the cold start of `recipe` and save model and tokenizer to `folder`.

    Raises ValueError for an environment without an expert, or a system prompt.
    """
    config = recipe.cold_start
    if recipe.model.system is not None:
        raise ValueError(
            f"model.system={recipe.model.system!r}: a cold start learns from the expert how to "
            "answer; leave it None"
        )
    torch.manual_seed(recipe.seed)
    episodes = []
    source: Any = make_source(replace(recipe.env, workers=0))
    if not isinstance(source, Demonstrator):
        raise ValueError(f"env.name={recipe.env.name!r} has no expert for a cold start to imitate")
    for episode in expert_episodes(source, config, recipe.seed):
        episodes.append(episode)
        on_progress(SftProgress(phase="episodes", step=len(episodes), steps=config.episodes))
    tokenizer = train_tokenizer([NUMBERS, REFUSED, *source.texts(recipe.seed), *_texts(episodes)])
    if hasattr(source, "close"):
        source.close()
    chat = Chat(tokenizer)
    rng = random.Random(recipe.seed)
    demonstrations = [demonstration(episode, chat, config, rng) for episode in episodes]
    model = new_model(config, tokenizer)
    steps = config.fit.steps
    fit(
        model,
        demonstrations,
        config.fit,
        seed=recipe.seed,
        folder=folder,
        on_step=lambda step, loss: on_progress(
            SftProgress(phase="train", step=step, steps=steps, loss=loss)
        ),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def expert_episodes(source: Any, config: ColdStartConfig, seed: int) -> Iterator[Episode]:
    """Return the episodes of the expert of `source` on training games, won or not."""
    tasks = source.tasks("train", config.episodes, seed)
    return source.experts(tasks, max_steps=config.max_steps, seed=seed, detours=config.detours)


def demonstration(
    episode: Episode, chat: Chat, config: ColdStartConfig, rng: random.Random
) -> Demonstration:
    """Return `episode` as a chain of nodes, decisions and observations apart, and their weights."""
    tree = Tree(task="expert", seed=0)
    terms: list[list[Term]] = []

    def add(tokens: list[int], weight: float) -> None:
        parent = len(tree.nodes) - 1 if tree.nodes else None
        trained = [weight > 0] * len(tokens)
        zeros = [0.0] * len(tokens)
        tree.nodes.append(
            Node(parent=parent, tokens=tokens, sampled=trained, logprobs=zeros, log_kept_mass=zeros)
        )
        terms.append([Term(advantage=1.0, weight=weight)] if weight > 0 else [])

    add(chat.prompt(episode.steps[0].observation), 0.0)
    observations = [step.observation for step in episode.steps[1:]] + [episode.ending]
    for step, observation in zip(episode.steps, observations, strict=True):
        if rng.random() < config.invalid_share:
            refused = chat.encode(f"<think> </think> <action> {_refused(step, rng)} </action>")
            add(refused + chat.reply(REFUSED, after=refused), 0.0)
        tokens = chat.encode(decision(step))
        add(tokens, 1.0)
        add(chat.reply(observation, after=tokens), config.observation_weight)
    return tree, terms


def new_model(config: ColdStartConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a randomly initialised Qwen3 model for `tokenizer`."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=3 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _texts(episodes: list[Episode]) -> Iterator[str]:
    for episode in episodes:
        for step in episode.steps:
            yield f"{step.observation} {decision(step)} {' '.join(step.admissible)}"
        yield episode.ending


def _refused(step: ExpertStep, rng: random.Random) -> str:
    """Return a command that the environment does not admit in the state of `step`."""
    words = rng.choice(step.admissible).split()
    wrong = [word if not word.isdigit() else str(int(word) + 20) for word in words]
    return " ".join(wrong) if wrong != words else "look around"
