"""Trees and metrics as the plain data the report draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark.core import Node, Tree
from spark.view.run import Decode


class Pieces:
    """The distinct pieces of text of all tokens shown, and each token's place among them."""

    def __init__(self, decode: Decode) -> None:
        """`decode` turns token ids into text."""
        self.texts: list[str] = []
        self._decode = decode
        self._index: dict[str, int] = {}
        self._cache: dict[tuple[int, ...], int] = {}

    def split(self, tokens: Sequence[int]) -> list[int]:
        """Return the index of each token's text, spacing judged with the token before it."""
        pairs = [tuple(tokens[max(0, at - 1) : at + 1]) for at in range(len(tokens))]
        return [self._piece(pair) for pair in pairs]

    def _piece(self, pair: tuple[int, ...]) -> int:
        if pair not in self._cache:
            before, both = self._decode(pair[:-1]), self._decode(pair)
            text = both[len(before) :] if both.startswith(before) else self._decode(pair[-1:])
            self._cache[pair] = self._index.setdefault(text, len(self._index))
            if len(self._index) > len(self.texts):
                self.texts.append(text)
        return self._cache[pair]


def advantages(tree: Tree) -> list[float]:
    """Return the advantage every node is trained with; default credit where none is noted."""
    from spark.train.credit import CreditConfig, credit

    noted = {**tree.info.get("credit", {}), "once_per_leaf": False}
    return [terms[0].advantage for terms in credit(tree, CreditConfig(**noted))]


def tree_record(tree: Tree, pieces: Pieces) -> dict[str, Any]:
    """Return what the page needs to draw `tree`."""
    nodes = zip(tree.nodes, advantages(tree), strict=True)
    records = [node_record(node, advantage, pieces) for node, advantage in nodes]
    for leaf in tree.leaves():
        records[leaf]["total_reward"] = tree.total_reward(leaf)
    plan = tree.info.get("config", {})
    return {
        "name": tree_name(tree),
        "facts": tree_facts(tree),
        "horizon": plan.get("horizon"),
        "leaf_budget": plan.get("leaves"),
        "nodes": records,
    }


def node_record(node: Node, advantage: float, pieces: Pieces) -> dict[str, Any]:
    """Return one node: texts of all tokens, numbers of the sampled ones."""
    sampled = [at for at, drawn in enumerate(node.sampled) if drawn]
    return {
        "parent": node.parent,
        "turn": node.turn,
        "tokens": pieces.split(node.tokens),
        "sampled": sampled,
        "entropies": [round(node.entropies[at], 3) for at in sampled],
        "logprobs": [round(node.logprobs[at], 3) for at in sampled],
        "kept": [round(node.log_kept_mass[at], 3) for at in sampled],
        "entropy": mean_entropy(node),
        "logprob": sum(node.logprobs[at] for at in sampled),
        "advantage": round(advantage, 4),
        "trigger": node.trigger,
        "reward": node.reward,
        "invalid": node.invalid,
        "done": node.done,
    }


def mean_entropy(node: Node) -> float | None:
    """Return the mean entropy of the sampled tokens in nats; None where none was sampled."""
    drawn = [value for value, sampled in zip(node.entropies, node.sampled, strict=True) if sampled]
    return sum(drawn) / len(drawn) if drawn else None


def tree_name(tree: Tree) -> str:
    """Return arm, step and task of `tree`, as far as they are known."""
    step = tree.info.get("step")
    parts = [tree.info.get("arm"), None if step is None else f"step {step}", tree.task]
    return " · ".join(str(part) for part in parts if part)


def tree_facts(tree: Tree) -> list[str]:
    """Return short statements about `tree`."""
    leaves = tree.leaves()
    sampled = [sum(node.sampled) for node in tree.nodes]
    walked = sum(sampled[index] for leaf in leaves for index in tree.path(leaf))
    won = sum(tree.total_reward(leaf) > 0 for leaf in leaves)
    forks = tree.info.get("forks", 0)
    facts = [f"{len(tree.nodes)} nodes", f"{len(leaves)} leaves, {won} with reward"]
    facts.append(f"{forks} forks" if forks else "no forks")
    facts.append(f"{sum(sampled)} sampled tokens for {walked} tokens of paths")
    facts += [f"failed: {failure['error']}" for failure in tree.info.get("errors", ())]
    return [*facts, f"seed {tree.seed}", f"weights {tree.weight_version}"]


def charts(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one chart for every number that was recorded at two steps or more."""
    series: dict[str, dict[str, list[list[float]]]] = {}
    for at, line in enumerate(metrics):
        arm, step = str(line.get("arm", "run")), line.get("step", at)
        for name, value in flat(line):
            if name not in ("arm", "step"):
                series.setdefault(name, {}).setdefault(arm, []).append([step, value])
    return [
        {"name": name, "series": [{"arm": arm, "points": points} for arm, points in arms.items()]}
        for name, arms in series.items()
        if any(len(points) > 1 for points in arms.values())
    ]


def flat(line: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return the finite numbers in `line`, names of nested ones joined by a slash."""
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            found.append((prefix + name, value))
    return found
