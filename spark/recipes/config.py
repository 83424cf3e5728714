"""What a recipe is made of: nested dataclasses, each field documented."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spark.engines import ENGINES
from spark.envs.alfworld.scenes import Scenes
from spark.envs.gymnasium import GymnasiumOptions
from spark.envs.scienceworld import ScienceWorldOptions
from spark.envs.textworld import TextWorldOptions
from spark.envs.webshop import WebShopOptions
from spark.recipes import METHODS
from spark.rollout.config import RolloutConfig
from spark.train.config import LossConfig, SftConfig, at_least
from spark.train.credit import CreditConfig
from spark.train.replay import ReplayConfig


@dataclass(kw_only=True, slots=True, frozen=True)
class LoraConfig:
    """Low-rank adapters instead of full weights."""

    rank: int = 0
    """Of each adapter; 0 = no adapters, train all weights."""
    alpha: int = 32
    targets: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, e.g. q_proj v_proj; all-linear = every linear one but the
    head."""

    def __post_init__(self) -> None:
        at_least(self, rank=0, alpha=1)
        if isinstance(self.targets, str) or any("," in name for name in self.targets):
            raise ValueError(
                f"targets={self.targets!r} must be a tuple of names; on a command line they follow "
                "each other: --model.lora.targets q_proj v_proj"
            )


EMBEDDED = ("local", "sglang", "vllm")
"""Engines that need no server."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelConfig:
    """The policy to start from."""

    path: str = "first_light"
    """Name of a committed checkpoint, a folder, or a model name of the Hugging Face hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the engine's weights and KV cache; the trainer keeps float32 weights."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    template: str | None = None
    """Chat template: None = the tokenizer's own, "append_only" = ChatML without rewriting, or
    a file."""
    system: str | None = None
    """System prompt: "agent" = one that explains the tags to a chat model, or a text of your own;
    None = none."""


@dataclass(kw_only=True, slots=True, frozen=True)
class EnvConfig:
    """Where the tasks come from."""

    name: str = "alfworld"
    """alfworld, scienceworld, textworld, webshop, gymnasium, or module:Source of your own."""
    scenes: Scenes = field(default_factory=Scenes)
    """How ALFWorld's games are generated."""
    data: Path | None = None
    """Folder of official ALFWorld games (json_2.1.1) to use instead of generated ones."""
    scienceworld: ScienceWorldOptions = field(default_factory=ScienceWorldOptions)
    textworld: TextWorldOptions = field(default_factory=TextWorldOptions)
    webshop: WebShopOptions = field(default_factory=WebShopOptions)
    gymnasium: GymnasiumOptions = field(default_factory=GymnasiumOptions)
    train_games: int = 128
    """Different games trained on; they come round again after that many."""
    workers: int = 0
    """Processes that run the environments; 0 = they run in this one."""

    def __post_init__(self) -> None:
        at_least(self, train_games=1, workers=0)


@dataclass(kw_only=True, slots=True, frozen=True)
class TrainConfig:
    """How the trees of a step change the weights."""

    games_per_step: int = 8
    """Trees of a step."""
    minibatches: int = 2
    """Optimiser steps per rollout."""
    lr: float = 3e-4
    """Learning rate of AdamW."""
    row_tokens: int = 4096
    """Tokens of a packed row at most."""
    bf16: bool | None = None
    """Compute in bfloat16, weights stay float32; None = where there is a GPU."""
    checkpoint_every: int = 5
    """Rollouts between two checkpoints."""
    report_to: str = "none"
    """Logger of transformers' Trainer, e.g. "tensorboard" or "wandb"."""
    reference: str | None = None
    """Frozen policy that the KL term holds on to, as a central reference for every arm (the idea
    of SPACeR): a folder or a name as in `model.path`; None = the recipe's start."""
    credit: CreditConfig = field(default_factory=CreditConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        at_least(self, games_per_step=1, minibatches=1, lr=0, row_tokens=1, checkpoint_every=1)


@dataclass(kw_only=True, slots=True, frozen=True)
class EvalConfig:
    """The fixed evaluation set: one trajectory per game, the same games and seeds every time."""

    games: dict[str, int] = field(default_factory=lambda: {"L0": 128, "L1": 64, "L2": 64})
    """Games per split; 0 = the split is left out."""
    seed: int = 1
    """Seed of the games and of the sampling."""
    temperature: float = 1.0
    """Of the evaluated policy; 0 = greedy."""
    every: int = 0
    """Steps between two evaluations on `curve` while an arm trains; 0 = none. They cost an arm
    neither tokens nor seconds of its budget."""
    curve: str = "L0"
    """Split evaluated for the learning curve."""

    def __post_init__(self) -> None:
        at_least(self, temperature=0, every=0)
        for split, games in self.games.items():
            if games < 0:
                raise ValueError(f"games[{split!r}]={games} must be >= 0; 0 leaves the split out")
        if not self.splits:
            raise ValueError(f"games={self.games} leaves every split out: give one some games")

    @property
    def splits(self) -> list[str]:
        """The splits that have games."""
        return [split for split, games in self.games.items() if games]


@dataclass(kw_only=True, slots=True, frozen=True)
class ColdStartConfig:
    """A small model trained from scratch on the environment's expert (`spark sft`)."""

    episodes: int = 1500
    """Expert episodes."""
    max_steps: int = 30
    """Decisions of an episode at most."""
    detours: float = 0.25
    """Share of the expert's steps that go, open or close at random instead. They are imitated too:
    the start then tries different things, and is far from the best it could do."""
    observation_weight: float = 0.3
    """Loss weight of what the environment says; the decisions weigh 1."""
    invalid_share: float = 0.12
    """Share of turns preceded by an untrained command that the environment refuses."""
    layers: int = 3
    hidden: int = 128
    heads: int = 4
    head_dim: int = 32
    context: int = 2048
    """Positions of the model, in tokens."""
    fit: SftConfig = field(default_factory=SftConfig)

    def __post_init__(self) -> None:
        at_least(self, episodes=1, max_steps=1)


@dataclass(kw_only=True, slots=True, frozen=True)
class Recipe:
    """One experiment: arms that start from the same weights, games and seed.

    Example:
        RECIPES["first_light"]()
    """

    name: str
    seed: int = 0
    """Fixes the games trained on, every sampled token and every update."""
    arms: tuple[str, ...] = ("spark", "chain")
    """Methods to compare: `own_arm` does what this recipe says; any other name in METHODS, e.g.
    "chain" (independent trajectories), changes rollout, credit and replay as that method does."""
    own_arm: str = "spark"
    """The arm that takes every field of this recipe as it is."""
    budget_tokens: int | None = 300_000
    """Generated tokens after which an arm stops; None = only seconds count."""
    budget_seconds: float | None = None
    """Seconds of rollout and training after which an arm stops; None = only tokens count."""
    engine: str = "local"
    """Where the policy runs: "local" = in this process; "sglang", "vllm" = beside it, or with `url`
    on a server of that engine; "http" = any Spark server at `url`."""
    url: str | None = None
    """Where a server listens that serves this policy, e.g. http://localhost:8000; several share the
    trees: their urls, separated by commas."""
    kv_blocks: int = 8192
    """KV cache of an engine without `url`, in blocks of 16 tokens."""
    device: str | None = None
    """Where the local engine runs, e.g. cpu or cuda; None = where training does: on a GPU if
    there is one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)

    def __post_init__(self) -> None:
        for arm in self.arms:
            METHODS[arm]
        if not self.arms:
            raise ValueError(f"arms=(): name at least one of {', '.join(METHODS)}")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms={self.arms} names an arm twice: name each once")
        if self.eval.every and self.eval.curve not in self.eval.splits:
            known = ", ".join(self.eval.splits) or "none"
            raise ValueError(f"eval.curve={self.eval.curve!r} has no games: use one of {known}")
        for name in ("budget_tokens", "budget_seconds"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name}={value} must be > 0, or None for no such limit")
        at_least(self, kv_blocks=1, seed=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed} must be < 2**32, as numpy wants it")
        if self.budget_tokens is None and self.budget_seconds is None:
            raise ValueError("budget_tokens=None needs budget_seconds: an arm must end")
        ENGINES.check(self.engine)
        if self.engine == "local" if self.url else self.engine not in EMBEDDED:
            raise ValueError(
                f"engine={self.engine!r} and url={self.url!r}: a server's engine needs its url "
                "(spark serve starts one), the local one takes none"
            )
        if self.device is not None and self.engine != "local":
            raise ValueError(
                f"device={self.device!r} is for engine='local' only: leave it None, "
                f"{self.engine} chooses its own"
            )

    def arm(self, name: str) -> Recipe:
        """Return the recipe of one arm."""
        changed: Recipe = self if name == self.own_arm else METHODS.make(name, self)
        return changed

    def spent(self, tokens: int, seconds: float) -> float:
        """Return the share of the budget that is gone; an arm ends at 1."""
        pairs = ((tokens, self.budget_tokens), (seconds, self.budget_seconds))
        return max(used / limit for used, limit in pairs if limit is not None)
