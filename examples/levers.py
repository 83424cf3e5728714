"""An agent of your own in one file: an environment, its tasks, an expert and a recipe.

A walk leads to four levers, and the first one pulled decides. Where to walk is told at every step;
which lever belongs to which sign is for the policy to find out: all that matters is decided last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from spark.envs.expert import Episode, ExpertStep
from spark.envs.replay import ReplayMixin
from spark.recipes.config import (
    ColdStartConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
)
from spark.rollout.config import RolloutConfig
from spark.seeds import derive_seed
from spark.train.config import SftConfig

SIGNS = ("fox", "owl", "bee", "elk", "cat", "ram", "eel", "hen")
UNSEEN = ("cow", "dog")
WAYS = ("north", "east", "south", "west")
LEVERS = ("red", "green", "blue", "white")
KNOWN = 0.25
"""Share of demonstrations whose lever is no guess."""


class Walk(ReplayMixin):
    """Go where the way goes, then pull a lever. A fork takes the steps again, and checks them."""

    def begin(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Start a task like "fox/north,east". Raises ValueError for any other text."""
        self.sign, _, ways = task.partition("/")
        self.ways = ways.split(",")
        if self.sign not in SIGNS + UNSEEN or not set(self.ways) <= set(WAYS):
            raise ValueError(f"task {task!r} is none of ours: give SIGN/WAY,WAY,...")
        self.lever = LEVERS[(SIGNS + UNSEEN).index(self.sign) % len(LEVERS)]
        self.won = False
        return f"There is the sign of the {self.sign}. {self.view()}", self.info()

    def act(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Walk on, or pull a lever, which ends the episode."""
        if action not in self.commands():
            return "Nothing happens.", 0.0, False, False, self.info()
        word = action.split()[1]
        if self.ways:
            wrong = word != self.ways[0]
            self.ways = self.ways if wrong else self.ways[1:]
            return ("A wall. " if wrong else "") + self.view(), 0.0, False, False, self.info()
        self.won = word == self.lever
        text = "A door opens." if self.won else "Nothing moves."
        return text, float(self.won), True, False, self.info()

    def fresh(self) -> Walk:
        """Return another one."""
        return Walk()

    def view(self) -> str:
        """Return what there is to see."""
        if not self.ways:
            return f"The levers are under the {self.sign}."
        end = ", to the levers" if len(self.ways) == 1 else ""
        return f"The way goes {self.ways[0]}{end}."

    def commands(self) -> list[str]:
        """Return what can be done."""
        return [f"go {way}" for way in WAYS] if self.ways else [f"pull {x}" for x in LEVERS]

    def info(self) -> dict[str, Any]:
        """Return what comes with every observation."""
        return {"admissible": self.commands(), "won": self.won}


class Levers:
    """Walks of twelve steps. L1 has shorter ones, L2 signs that nobody can know."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return `count` tasks, the same for a seed."""
        rng = Random(f"{split}/{seed}")
        signs = UNSEEN if split == "L2" else SIGNS
        steps = 8 if split == "L1" else 12
        return [f"{rng.choice(signs)}/{','.join(rng.choices(WAYS, k=steps))}" for _ in range(count)]

    def make(self) -> Walk:
        """Return a fresh environment."""
        return Walk()

    def experts(
        self, tasks: Sequence[str], *, max_steps: int, seed: int, detours: float
    ) -> Iterator[Episode]:
        """Yield demonstrations that know the way, and the lever in one case of four."""
        for task in tasks:
            yield demonstration(task, Random(derive_seed(seed, task)), max_steps, detours)

    def texts(self, seed: int) -> Iterator[str]:
        """Yield all words there are."""
        yield from (*SIGNS, *UNSEEN, *WAYS, *LEVERS, "A door opens. Nothing moves. A wall.")


def demonstration(task: str, rng: Random, max_steps: int, detours: float) -> Episode:
    """Walk as told and pull a lever; the decision before the levers is flagged."""
    env = Walk()
    text, info = env.reset(task)
    episode = Episode(ending=text)
    over = False
    while not over and len(episode.steps) < max_steps:
        word, verb = chosen(env, rng, detours), "go" if env.ways else "pull"
        last = len(env.ways) == 1
        goal = f"{'find' if last else verb} {word}"
        step = ExpertStep(episode.ending, f"{verb} {word}", last, goal, info["admissible"])
        episode.steps.append(step)
        episode.ending, _, over, _, info = env.step(step.action)
    episode.won = env.won
    return episode


def chosen(env: Walk, rng: Random, detours: float) -> str:
    """Return where the expert goes, or the colour of the lever it pulls."""
    if env.ways:
        return rng.choice(WAYS) if rng.random() < detours else env.ways[0]
    return env.lever if rng.random() < KNOWN else rng.choice(LEVERS)


def levers() -> Recipe:
    """Two walks, each with four pulls at its end, against chains: eight walks with one."""
    return Recipe(
        name="levers",
        model=ModelConfig(path="runs/levers_start"),
        env=EnvConfig(name=f"{__name__}:Levers", train_games=256),
        rollout=RolloutConfig(
            leaves=8, roots=2, width=4, pacing="first_come", horizon=24, max_tokens=12
        ),
        train=TrainConfig(lr=6e-4),
        budget_tokens=25_000,
        eval=EvalConfig(games={"L0": 200, "L1": 200, "L2": 200}),
        cold_start=ColdStartConfig(
            episodes=800,
            detours=0.0,
            invalid_share=0.0,
            layers=2,
            hidden=64,
            heads=2,
            context=1024,
            fit=SftConfig(steps=600),
        ),
    )
