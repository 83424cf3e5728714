"""A small, made-up run on disk: real file formats, random trees."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from spark.core import Node, Tree
from spark.rollout.store import save_tree

SENTENCE = (
    "<explore> find mug </explore> <action> go to open shelf drawer </action> you see a 1 2 ."
)
WORDS = SENTENCE.split(" ")
HORIZON = 12


def write_tokenizer(folder: Path) -> None:
    """Store a tokenizer that knows `WORDS`; one of them tries to end the page's script."""
    words = [*WORDS, "</script><b>"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "."))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def run_of(rng: random.Random, parent: int, turn: int) -> Node:
    """Return one turn: sampled tokens, then the observation."""
    drawn, given = rng.randint(4, 14), rng.randint(3, 9)
    tokens = [rng.randrange(len(WORDS) + 1) for _ in range(drawn + given)]
    sampled = [True] * drawn + [False] * given
    entropies = [rng.expovariate(2.0) * is_drawn for is_drawn in sampled]
    return Node(
        parent=parent,
        turn=turn,
        tokens=tokens,
        sampled=sampled,
        logprobs=[-0.8 * entropy for entropy in entropies],
        log_kept_mass=[-0.01 * is_drawn for is_drawn in sampled],
        entropies=entropies,
        invalid=rng.random() < 0.1,
    )


def make_tree(seed: int, *, arm: str, step: int, roots: int = 4, leaves: int = 8) -> Tree:
    """Return a random tree of `leaves` leaves, `roots` of them from the prompt."""
    rng = random.Random(seed)
    tree = Tree(task=f"L0/{seed}", seed=seed, info={"arm": arm, "step": step})
    tree.info |= {"config": {"horizon": HORIZON, "leaves": leaves}, "forks": leaves - roots}
    zeros = [0.0] * 9
    tree.nodes.append(Node(parent=None, turn=-1, tokens=list(range(9)), sampled=[False] * 9,
                           logprobs=zeros, log_kept_mass=zeros, entropies=zeros))  # fmt: skip
    tips, spare = [0] * roots, leaves - roots
    for turn in range(HORIZON):
        following = []
        for tip in tips:
            node = run_of(rng, tip, turn)
            tree.nodes.append(node)
            index = len(tree.nodes) - 1
            if turn == HORIZON - 1 or rng.random() < 0.05:
                node.done, node.reward = True, float(rng.random() < 0.5)
                continue
            forks = spare > 0 and rng.random() < 0.15
            node.trigger = "explore" if forks else None
            spare -= forks
            following += [index] * (1 + forks)
        tips = following
    return tree


def write_run(folder: Path, *, finished: bool = True, trees_per_arm: int = 3) -> Path:
    """Write a run of two arms into `folder` and return it."""
    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    for arm, roots in (("chain", 8), ("spark", 4)):
        for step in range(trees_per_arm):
            save_tree(folder / "trees.jsonl", make_tree(step, arm=arm, step=step, roots=roots))
    (folder / "recipe.json").write_text(json.dumps({"eval": {"games": {"L0": 100, "L1": 64}}}))
    rng = random.Random(0)
    lines = [
        {"arm": arm, "step": step, "reward": rng.random(), "kl": rng.random() / 1000, "loss": -step}
        for step in range(8)
        for arm in ("chain", "spark")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary()))
    return folder


def summary() -> dict[str, object]:
    """Return a summary in the schema of a finished run."""
    counters = ("generated", "prefilled", "reused", "recomputed", "trained")
    arm: dict[str, object] = {"leaves": 384}
    arm |= {f"{name}_tokens": 1000 * at for at, name in enumerate(counters, 1)}
    arm |= {"env_steps": 5000, "env_steps_replayed": 0, "forks": 120}
    arm |= {"rollout_wall_s": 61.25, "train_wall_s": 40.0}
    arm |= {"success_before": {"L0": 0.34, "L1": 0.3, "L2": 0.1}}
    arm |= {"success_after": {"L0": 0.48, "L1": 0.4, "L2": 0.08}}
    arms = {"chain": arm, "spark": arm}
    return {"schema": 1, "model_params": 620_000, "seed": 0, "wall_s": 312.0, "arms": arms}
