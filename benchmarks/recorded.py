"""Recorded trees for the training benchmark, and the three ways to train on them."""

from __future__ import annotations

import random
from dataclasses import replace

from benchmarks.engine import VOCAB
from spark.core import Node, Tree
from spark.train.credit import CreditConfig, Term, credit
from spark.train.replay import chain_of

Forest = list[tuple[Tree, list[list[Term]]]]
PROMPT, TURN, SAID = 64, 48, 16
"""Tokens of the prompt, of a turn, and of the decision in it."""


def recorded(shared: int, own: int, leaves: int, seed: int) -> Tree:
    """Return a tree of `shared` turns, then `leaves` branches of `own` turns, half of them won."""
    rng = random.Random(seed)

    def given(parent: int | None, count: int, said: int) -> Node:
        tokens = [rng.randrange(VOCAB) for _ in range(count)]
        sampled = [at < said for at in range(count)]
        logprobs = [-1.0 if drawn else 0.0 for drawn in sampled]
        zeros = [0.0] * count
        return Node(
            parent=parent,
            tokens=tokens,
            sampled=sampled,
            logprobs=logprobs,
            log_kept_mass=zeros,
            entropies=zeros,
        )

    tree = Tree(task="recorded", seed=seed, nodes=[given(None, PROMPT, 0)])
    for turn in range(shared):
        tree.nodes.append(given(turn, TURN, SAID))
    for leaf in range(leaves):
        parent = shared
        for _ in range(own):
            tree.nodes.append(given(parent, TURN, SAID))
            parent = len(tree.nodes) - 1
        tree.nodes[-1] = replace(tree.nodes[-1], done=True, reward=float(leaf % 2))
    return tree


def packed(forest: list[Tree]) -> Forest:
    """Return whole trees with merged terms."""
    return [(tree, credit(tree, CreditConfig())) for tree in forest]


def per_leaf(forest: list[Tree]) -> Forest:
    """Return every path as a tree of its own, with the leaf's own terms."""
    paths: Forest = []
    for tree in forest:
        terms = credit(tree, CreditConfig(once_per_leaf=True))
        for place, leaf in enumerate(tree.leaves()):
            own = [terms[index][place if shared else 0] for index, shared in path(tree, leaf)]
            paths.append((chain_of(tree, leaf), [[term] for term in own]))
    return paths


def path(tree: Tree, leaf: int) -> list[tuple[int, bool]]:
    """Return the nodes of a path, and whether all leaves of the tree share each."""
    shared = len(tree.path(leaf)) - own_turns(tree, leaf)
    return [(index, depth < shared) for depth, index in enumerate(tree.path(leaf))]


def own_turns(tree: Tree, leaf: int) -> int:
    """Return how many nodes at the end of a path no other leaf has."""
    fork = max(index for index, kids in enumerate(tree.children()) if len(kids) > 1)
    return len(tree.path(leaf)) - len(tree.path(fork))


def per_prompt(forest: list[Tree]) -> Forest:
    """Return every tree with the prompt shared and the rest of each path by itself."""
    trees: Forest = []
    chains = iter(per_leaf(forest))
    for tree in forest:
        flat = Tree(task=tree.task, seed=tree.seed, nodes=[tree.nodes[0]])
        flat_terms: list[list[Term]] = [[]]
        for _ in tree.leaves():
            chain, terms = next(chains)
            start = len(flat.nodes) - 1
            for index, node in enumerate(chain.nodes[1:], start=1):
                flat.nodes.append(replace(node, parent=start + index - 1 if index > 1 else 0))
                flat_terms.append(terms[index])
        trees.append((flat, flat_terms))
    return trees
