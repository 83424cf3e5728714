"""Who gets the credit: each scheme maps a group to an advantage per leaf and node of its path."""

from __future__ import annotations

import math
from collections import defaultdict

from spark.train.credit.base import Group, compare, given_tail, node_rewards, weighted_mean

Advantages = dict[tuple[int, int], float]


def leaf(group: Group) -> Advantages:
    """Give every node of a path the leaf's return compared with all leaves (Spark, GRPO)."""
    return _along_paths(group, group.compared(list(group.returns)))


def node(group: Group) -> Advantages:
    """Give a run of nodes without a fork its Monte-Carlo value minus the value it started from.

    The value of a state is the mean return of the leaves below it, so on every path these
    advantages sum to the return minus the tree's mean, and at a fork their mean is 0 (VinePPO,
    arXiv 2410.01679; segments as in SPO, 2505.23564; TreeRL's local term, 2506.11902).
    """
    values = [group.mean(leaves) for leaves in group.below]
    starts = _starts(group)
    scaled = [value - values[start] for value, start in zip(values, starts, strict=True)]
    return _of_nodes(group, scaled)


def nested(group: Group) -> Advantages:
    """Give a run of nodes without a fork its value minus what others got from where it started.

    The others are the leaves below the same state but not below the run itself, so that no
    baseline depends on what it is taken from (as RLOO's, arXiv 2402.14740). They are few: with
    them, like `baseline_prior` more of them, goes the baseline of the run before.
    """
    starts, prior = _starts(group), group.config.baseline_prior
    baselines: list[float | None] = [None] * len(starts)
    advantages = [0.0] * len(starts)
    for index, start in enumerate(starts):
        own = set(group.below[index])
        others = [leaf for leaf in group.below[start] if leaf not in own]
        before = baselines[start]
        weight = len(others) + (0.0 if before is None else prior)
        if weight:
            total = len(others) * group.mean(others) + (before or 0.0) * prior
            baselines[index] = total / weight
            advantages[index] = group.mean(group.below[index]) - total / weight
    return _of_nodes(group, advantages)


def _starts(group: Group) -> list[int]:
    """Return for every node the last fork, or the prompt, above it: where its run of nodes began.

    The prompt's children have begun at the prompt, even when it has only one.
    """
    children = group.tree.children()
    starts = [0] * len(children)
    for index, each in enumerate(group.tree.nodes):
        if each.parent is not None:
            alone = len(children[each.parent]) == 1
            starts[index] = starts[each.parent] if alone else each.parent
    return starts


def _of_nodes(group: Group, advantages: list[float]) -> Advantages:
    """Give every node its own advantage, in deviations of the group where that is wanted."""
    scale = group.deviation() if group.config.compare == "deviation" else 1.0
    return {
        (end, index): advantages[index] / scale if scale > 1e-6 else 0.0
        for end, path in group.paths.items()
        for index in path
    }


def tree(group: Group) -> Advantages:
    """Add the comparison with all leaves and that with the leaves of the same root (Tree-GRPO).

    arXiv 2509.21240: inter-tree plus intra-tree advantage; a tree there is what grows from one
    of our roots. Without a comparison the return counts once.
    """
    total = group.compared(list(group.returns))
    if group.config.compare == "none":
        return _along_paths(group, total)
    # a tree lost to a failed reset has no nodes
    for root in group.tree.children()[0] if group.tree.nodes else ():
        for end, advantage in group.compared(group.below[root]).items():
            total[end] += advantage
    return _along_paths(group, total)


def depth(group: Group) -> Advantages:
    """Compare a leaf with the subgroup below each of its forking ancestors (TreePO).

    arXiv 2508.17445: differences to the subgroups' means, averaged over the depths, then scaled
    by their deviation over the group.
    """
    children = group.tree.children()
    means = [group.mean(leaves) for leaves in group.below]
    centred = {}
    for end, path in group.paths.items():
        own = group.returns[end]
        forks = [own - means[index] for index in path if len(children[index]) > 1]
        centred[end] = math.fsum(forks) / max(1, len(forks))
    if group.config.compare == "deviation":
        weights = group.weights
        mean = weighted_mean((value, weights[end]) for end, value in centred.items())
        spread = weighted_mean(((v - mean) ** 2, weights[end]) for end, v in centred.items())
        centred = {
            end: compare(value, mean, math.sqrt(spread), group.config)
            for end, value in centred.items()
        }
    return _along_paths(group, centred)


def anchor(group: Group) -> Advantages:
    """Add to the leaf's advantage that of the step among all steps taken from the same state.

    GiGPO (arXiv 2505.10978): the same state is the same observation, here the tokens that the
    environment gave last; a step's return is the discounted sum of rewards from it on.
    """
    values = _step_values(group)
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, context in enumerate(_contexts(group)):
        if group.below[index] and context is not None:
            same[context].append(index)
    weights = [math.fsum(group.weights[end] for end in leaves) for leaves in group.below]
    steps = [0.0] * len(values)
    for members in same.values():
        mean = weighted_mean((values[index], weights[index]) for index in members)
        spread = weighted_mean(((values[x] - mean) ** 2, weights[x]) for x in members)
        for index in members:
            # with nothing to compare, not even REINFORCE counts a return twice
            if len(members) > 1:
                steps[index] = compare(values[index], mean, math.sqrt(spread), group.config)
    return {
        (end, index): advantage + group.config.step_weight * steps[index]
        for (end, index), advantage in leaf(group).items()
    }


def _along_paths(group: Group, advantages: dict[int, float]) -> Advantages:
    """Give every node of a path its leaf's advantage."""
    return {(end, index): advantages[end] for end, path in group.paths.items() for index in path}


def _contexts(group: Group) -> list[tuple[int, ...] | None]:
    """Return what every node's first token answers: the last given tokens, and a decision begun.

    None for the prompt, which answers nothing.
    """
    after: list[tuple[int, ...]] = []
    before: list[tuple[int, ...] | None] = []
    for each in group.tree.nodes:
        before.append(None if each.parent is None else after[each.parent])
        tail = tuple(given_tail(each))
        after.append(tail or (before[-1] or ()) + tuple(each.tokens))
    return before


def _step_values(group: Group) -> list[float]:
    """Return for every node the mean, over the leaves below, of the discounted rewards from it."""
    rewards, nodes = node_rewards(group.tree, group.config), group.tree.nodes
    values: list[list[tuple[float, float]]] = [[] for _ in nodes]
    for end, path in group.paths.items():
        value, turn = 0.0, nodes[end].turn
        for index in reversed(path):
            value = value * group.config.discount ** (turn - nodes[index].turn) + rewards[index]
            turn = nodes[index].turn
            values[index].append((value, group.weights[end]))
    return [weighted_mean(pairs) for pairs in values]
