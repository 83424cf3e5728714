"""Every scheme against a slow twin, its invariants, and the bias of uniform leaf weights."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import random_tree

from spark.core import Node, Tree
from spark.train.credit import SCHEMES, CreditConfig, credit, leaf_returns
from spark.train.credit.base import Group, node_rewards

COMPARE = ("deviation", "mean", "none")
CONFIGS = st.builds(
    CreditConfig,
    scheme=st.sampled_from(sorted(SCHEMES)),
    leaf_weights=st.sampled_from(["uniform", "branching"]),
    compare=st.sampled_from(COMPARE),
    normalise=st.sampled_from(["sequence", "token"]),
)


def mean(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def placed(value: float, values: list[float], weights: list[float], how: str) -> float:
    """The definition of `compare`, written out."""
    middle = mean(values, weights)
    spread = mean([(v - middle) ** 2 for v in values], weights) ** 0.5
    if how == "none":
        return value
    return value - middle if how == "mean" else (value - middle) / spread if spread > 1e-6 else 0.0


def weight(tree: Tree, leaf: int, config: CreditConfig) -> float:
    if config.leaf_weights == "uniform":
        return 1.0
    counts = [sum(n.parent == tree.nodes[i].parent for n in tree.nodes) for i in tree.path(leaf)]
    return 1.0 / math.prod(counts[1:])


def twin(tree: Tree, leaf: int, index: int, config: CreditConfig) -> float:
    """The advantage of `index` for `leaf` by definition, looking at everything anew."""
    returns = leaf_returns(tree, config)
    leaves, w = list(returns), {end: weight(tree, end, config) for end in returns}

    def below(at: int) -> list[int]:
        return [end for end in leaves if at in tree.path(end)]

    def beside(end: int, group: list[int]) -> float:
        return placed(returns[end], [returns[x] for x in group], [w[x] for x in group], how)

    def value(at: int) -> float:
        return mean([returns[x] for x in below(at)], [w[x] for x in below(at)])

    how, path = config.compare, tree.path(leaf)
    if config.scheme == "leaf":
        return beside(leaf, leaves)
    if config.scheme == "tree":
        near = len(path) > 1 and how != "none"
        return beside(leaf, leaves) + (beside(leaf, below(path[1])) if near else 0.0)
    if config.scheme == "node":
        ends = [
            i for i in path if len(tree.children()[i]) > 1 and path.index(i) < path.index(index)
        ]
        gain = value(index) - value(ends[-1] if ends else 0)
        spread = placed_spread([returns[x] for x in leaves], [w[x] for x in leaves])
        return gain if how != "deviation" else gain / spread if spread > 1e-6 else 0.0
    if config.scheme == "nested":
        forks = [0, *(i for i in path[1:] if len(tree.children()[i]) > 1)]
        baseline: float | None = None
        for start in [i for i in forks if path.index(i) < path.index(index)]:
            inside = path[path.index(start) + 1]
            others = [end for end in below(start) if end not in below(inside)]
            prior = [(baseline, 2.0)] if baseline is not None else []
            if others or prior:
                got = mean([returns[x] for x in others], [w[x] for x in others]) if others else 0.0
                pairs = [(got, float(len(others))), *prior]
                baseline = mean([v for v, _ in pairs], [n for _, n in pairs])
        gain = 0.0 if baseline is None else value(index) - baseline
        spread = placed_spread([returns[x] for x in leaves], [w[x] for x in leaves])
        return gain if how != "deviation" else gain / spread if spread > 1e-6 else 0.0
    assert config.scheme == "depth"

    def centred(end: int) -> float:
        forks = [i for i in tree.path(end) if len(tree.children()[i]) > 1]
        return sum(returns[end] - value(i) for i in forks) / max(1, len(forks))

    if how != "deviation":
        return centred(leaf)
    return placed(centred(leaf), [centred(x) for x in leaves], [w[x] for x in leaves], how)


def placed_spread(values: list[float], weights: list[float]) -> float:
    middle = mean(values, weights)
    return mean([(v - middle) ** 2 for v in values], weights) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), CONFIGS.filter(lambda config: config.scheme != "anchor"))
def test_schemes_agree_with_their_slow_twin(seed: int, config: CreditConfig) -> None:
    tree = random_tree(seed, 10)
    advantages = SCHEMES[config.scheme](Group(tree=tree, config=config))
    visits = {(leaf, index) for leaf in tree.leaves() for index in tree.path(leaf)}
    assert advantages.keys() == visits
    for leaf, index in visits:
        expected = twin(tree, leaf, index, config)
        assert advantages[leaf, index] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), CONFIGS)
def test_weights_and_failed_leaves(seed: int, config: CreditConfig) -> None:
    tree = random_tree(seed, 12, constrained=False)
    failed = tree.leaves()[0]
    tree.nodes[failed].done = len(tree.leaves()) == 1
    terms = credit(tree, config)
    done = [leaf for leaf in tree.leaves() if tree.nodes[leaf].done]
    group = Group(tree=tree, config=config)
    assert math.fsum(group.weights.values()) == pytest.approx(len(done))
    assert terms[failed][0].weight == 0.0 or failed in done
    sampled = {leaf: sum(sum(tree.nodes[i].sampled) for i in tree.path(leaf)) for leaf in done}
    total = sum(sum(n.sampled) * t[0].weight for n, t in zip(tree.nodes, terms, strict=True))
    share = {"sequence": lambda x: float(sampled[x] > 0), "token": lambda x: float(sampled[x])}
    assert total == pytest.approx(sum(group.weights[x] * share[config.normalise](x) for x in done))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["uniform", "branching"]))
def test_node_advantages_telescope_and_cancel_at_forks(seed: int, weights: str) -> None:
    tree = random_tree(seed, 14)
    config = CreditConfig(scheme="node", compare="mean", leaf_weights=weights)
    group = Group(tree=tree, config=config)
    advantages = SCHEMES["node"](group)
    children = tree.children()
    for leaf, path in group.paths.items():
        last_of_run = [i for i in path if len(children[i]) != 1]
        total = sum(advantages[leaf, index] for index in last_of_run)
        assert total == pytest.approx(group.returns[leaf] - group.mean(group.returns), abs=1e-9)
    for kids in children:
        if len(kids) > 1:
            gains = [advantages[group.below[kid][0], kid] for kid in kids]
            shares = [sum(group.weights[x] for x in group.below[kid]) for kid in kids]
            assert mean(gains, shares) == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["uniform", "branching"]))
def test_nested_baselines_do_not_depend_on_what_they_are_taken_from(
    seed: int, weights: str
) -> None:
    tree = random_tree(seed, 14)
    config = CreditConfig(scheme="nested", compare="mean", leaf_weights=weights)

    def baselines() -> dict[int, float]:
        group = Group(tree=tree, config=config)
        found = SCHEMES["nested"](group)
        return {index: group.mean(group.below[index]) - found[leaf, index] for index in path}

    leaf = tree.leaves()[seed % len(tree.leaves())]
    path = tree.path(leaf)[1:]
    before = baselines()
    tree.nodes[leaf].reward += 3.0
    if sum(n.parent == 0 for n in tree.nodes) > 1:
        assert baselines() == pytest.approx(before)


@given(st.integers(0, 10_000), st.sampled_from(["leaf", "tree", "depth"]))
def test_schemes_agree_on_chains(seed: int, scheme: str) -> None:
    """Without forks, "tree" adds groups of one and "depth" has one depth: all are GRPO."""
    tree = random_tree(seed, 1)
    for number in range(4):
        tree.nodes.append(Node(parent=0, tokens=[number], sampled=[True], done=True))
        tree.nodes[-1].reward = float((seed >> number) & 1)
        tree.nodes[-1].logprobs = tree.nodes[-1].log_kept_mass = [0.0]
    config = CreditConfig(scheme=scheme)
    plain = credit(tree, CreditConfig())
    for one, other in zip(credit(tree, config), plain, strict=True):
        assert one[0].advantage == pytest.approx(other[0].advantage, abs=1e-9)


def observed(parent: int, turn: int, said: int, answer: int, **options: float) -> Node:
    """A decision of one token, answered by the observation `answer`; 0 = the end."""
    tokens = [said, answer] if answer else [said]
    return Node(
        parent=parent,
        turn=turn,
        tokens=tokens,
        sampled=[True, False][: len(tokens)],
        done=not answer,
        **options,
    )


def test_anchor_compares_the_steps_taken_from_the_same_observation() -> None:
    """Two chains meet in state 50; one wins from there after one more step, the other loses."""
    nodes = [Node(parent=None, turn=-1, tokens=[1, 2], sampled=[False, False])]
    nodes += [observed(0, 0, 11, 50), observed(0, 0, 12, 51)]
    nodes += [observed(1, 1, 13, 0, reward=1.0), observed(2, 1, 14, 50)]
    nodes += [observed(4, 2, 15, 0)]
    tree = Tree(task="t", seed=0, nodes=nodes)
    config = CreditConfig(scheme="anchor", compare="mean", success_reward=1.0, discount=0.5)
    advantages = SCHEMES["anchor"](Group(tree=tree, config=config))
    # episode: +-0.5; state 50: 1 and 0; the first decisions: 0.5 and 0; state 51 stands alone
    assert advantages[3, 3] == pytest.approx(0.5 + 0.5)
    assert advantages[5, 5] == pytest.approx(-0.5 - 0.5)
    assert advantages[3, 1] == pytest.approx(0.5 + 0.25)
    assert advantages[5, 2] == pytest.approx(-0.5 - 0.25)
    assert advantages[5, 4] == pytest.approx(-0.5)


def test_a_decision_split_by_a_fork_is_compared_where_it_was_split() -> None:
    nodes = [Node(parent=None, turn=-1, tokens=[1], sampled=[False])]
    nodes += [Node(parent=0, turn=0, tokens=[7], sampled=[True])]
    nodes += [observed(1, 0, 8, 0, reward=1.0), observed(1, 0, 9, 0), observed(0, 0, 7, 0)]
    tree = Tree(task="t", seed=0, nodes=nodes)
    config = CreditConfig(scheme="anchor", compare="mean", success_reward=3.0)
    advantages = SCHEMES["anchor"](Group(tree=tree, config=config))
    assert advantages[2, 2] == pytest.approx(2.0 + 1.5)
    assert advantages[3, 3] == pytest.approx(-1.0 - 1.5)
    # the prompt's group: the split decision (mean of both leaves) and the whole one
    assert advantages[4, 4] == pytest.approx(-1.0 - 1.0)


P_LEFT, P_WIN = 0.3, {0: 0.5, 1: 0.2}
"""A policy of two decisions: right (0) or left (1), then a winning or a losing one."""


def every_tree(roots: int, width: int) -> list[tuple[float, Tree]]:
    """All trees in which a left turn, and only that, branches; with their probabilities."""
    families = []
    for left in (0, 1):
        kids = width if left else 1
        for wins in product((0, 1), repeat=kids):
            chance = P_LEFT if left else 1 - P_LEFT
            for win in wins:
                chance *= P_WIN[left] if win else 1 - P_WIN[left]
            families.append((chance, left, wins))
    trees = []
    for combination in product(families, repeat=roots):
        nodes = [Node(parent=None, turn=-1, tokens=[9], sampled=[False])]
        for _, left, wins in combination:
            top = len(nodes)
            nodes.append(Node(parent=0, turn=0, tokens=[left], sampled=[True]))
            for win in wins:
                node = Node(parent=top, turn=1, tokens=[4 + win], sampled=[True], done=True)
                node.reward = float(win)
                nodes.append(node)
        chance = math.prod(chance for chance, _, _ in combination)
        trees.append((chance, Tree(task="t", seed=0, nodes=nodes)))
    assert sum(chance for chance, _ in trees) == pytest.approx(1.0)
    return trees


def expected(leaf_weights: str) -> tuple[float, float]:
    """Expected value estimate, and gradient with respect to the logit of going left."""
    config = CreditConfig(
        leaf_weights=leaf_weights, compare="none", success_reward=1.0, normalise="token"
    )
    value = gradient = 0.0
    for chance, tree in every_tree(roots=2, width=3):
        group = Group(tree=tree, config=config)
        value += chance * group.mean(group.returns)
        for node, (term,) in zip(tree.nodes, credit(tree, config), strict=True):
            if node.turn == 0:
                score = (1 - P_LEFT) if node.tokens[0] else -P_LEFT
                gradient += chance * term.weight * term.advantage * score / len(group.returns)
    return value, gradient


def test_uniform_weights_are_biased_and_branching_weights_are_not() -> None:
    true_value = P_LEFT * P_WIN[1] + (1 - P_LEFT) * P_WIN[0]
    true_gradient = P_LEFT * (1 - P_LEFT) * (P_WIN[1] - P_WIN[0])
    value, gradient = expected("uniform")
    # the left subtree, which wins less, has three leaves for every one of the right
    assert value < true_value - 0.03
    assert abs(gradient - true_gradient) > 0.02
    assert expected("branching") == pytest.approx((true_value, true_gradient), abs=1e-12)


def test_the_bonus_goes_to_the_first_visit() -> None:
    """Observation 50 is new, then repeated, then 51 is new; the last decision has no answer."""
    nodes = [Node(parent=None, turn=-1, tokens=[1, 2], sampled=[False, False])]
    nodes += [observed(turn, turn, 9, answer) for turn, answer in enumerate((50, 50, 51, 0))]
    config = CreditConfig(novelty_bonus=2.0, success_reward=1.0)
    rewards = node_rewards(Tree(task="t", seed=0, nodes=nodes), config)
    assert rewards[0] == 0.0 and rewards[4] == 0.0
    assert rewards[1] == rewards[3] == 2.0
    assert rewards[2] == pytest.approx(0.2, abs=0.01)


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown credit scheme 'leafs'; known: anchor, depth"):
        CreditConfig(scheme="leafs")
