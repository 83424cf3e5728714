"""Credit and loss: the node rule against once-per-leaf, and the objective's corners."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import random_tree, tiny_model

from spark.core import Node, Tree
from spark.train.attention import use_tree_attention
from spark.train.config import LossConfig
from spark.train.credit import SCHEMES, CreditConfig, credit, leaf_returns, teaches
from spark.train.loss import low_variance_kl, policy_logs, policy_loss
from spark.train.pack import Row, pack
from spark.train.policy import token_logprobs, token_loss


def gradients(once_per_leaf: bool, normalise: str, drift: float) -> list[torch.Tensor]:
    """Gradients of one step; `drift` moves the old log-probabilities away from the policy's."""
    model = tiny_model()
    use_tree_attention(model)
    config = CreditConfig(once_per_leaf=once_per_leaf, normalise=normalise)
    trees = [random_tree(seed, 12) for seed in range(4)]
    (row,) = pack(trees, [credit(tree, config) for tree in trees], 10_000)
    logprobs = token_logprobs(model, row)
    generator = torch.Generator().manual_seed(1)
    old = logprobs + drift * torch.randn(len(logprobs), generator=generator)
    reference = logprobs + 0.1

    objective = policy_loss(old, reference, row, LossConfig(), float(row.weight.sum()))
    token_loss(model, row, objective).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("normalise", ["sequence", "token"])
@pytest.mark.parametrize("drift", [0.0, 0.02])
def test_once_per_node_equals_once_per_leaf_while_nothing_is_clipped(
    normalise: str, drift: float
) -> None:
    once, per_leaf = gradients(False, normalise, drift), gradients(True, normalise, drift)
    for left, right in zip(once, per_leaf, strict=True):
        torch.testing.assert_close(left, right, atol=1e-7, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in once) > 1e-3


def test_they_differ_once_ratios_are_clipped() -> None:
    once, per_leaf = gradients(False, "token", 1.0), gradients(True, "token", 1.0)
    assert any(not torch.allclose(a, b, atol=1e-5) for a, b in zip(once, per_leaf, strict=True))


def two_leaf_tree(rewards: tuple[float, float]) -> Tree:
    nodes = [Node(parent=None, turn=-1, tokens=[1], sampled=[False])]
    nodes.append(Node(parent=0, tokens=[2, 3], sampled=[True, True]))
    nodes += [Node(parent=1, tokens=[4], sampled=[True], reward=r, done=True) for r in rewards]
    for node in nodes:
        node.logprobs = node.log_kept_mass = [0.0] * len(node.tokens)
    return Tree(task="t", seed=0, nodes=nodes)


def test_credit_by_hand() -> None:
    terms = credit(two_leaf_tree((1.0, 0.0)), CreditConfig(normalise="token"))
    assert [[(t.advantage, t.weight) for t in node] for node in terms] == [
        [(0.0, 2.0)],
        [(0.0, 2.0)],
        [(1.0, 1.0)],
        [(-1.0, 1.0)],
    ]
    per_leaf = credit(two_leaf_tree((1.0, 0.0)), CreditConfig(once_per_leaf=True))
    assert [(t.advantage, t.weight) for t in per_leaf[1]] == [(1.0, 1 / 3), (-1.0, 1 / 3)]


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_tree_without_nodes_has_no_credit(scheme: str) -> None:
    for compare in ("deviation", "mean", "none"):
        config = CreditConfig(scheme=scheme, compare=compare)
        assert credit(Tree(task="t", seed=0), config) == []


def test_equal_rewards_give_no_advantage() -> None:
    terms = credit(two_leaf_tree((1.0, 1.0)), CreditConfig())
    assert {term.advantage for node in terms for term in node} == {0.0}


def test_invalid_actions_cost() -> None:
    tree = two_leaf_tree((1.0, 1.0))
    tree.nodes[1].invalid = tree.nodes[3].invalid = True
    assert leaf_returns(tree, CreditConfig()) == {2: pytest.approx(9.9), 3: pytest.approx(9.8)}


@given(st.integers(0, 10_000))
def test_sequence_weights_sum_to_the_number_of_leaves(seed: int) -> None:
    tree = random_tree(seed, 12, constrained=False)
    terms = credit(tree, CreditConfig(normalise="sequence"))
    total = sum(
        sum(node.sampled) * node_terms[0].weight
        for node, node_terms in zip(tree.nodes, terms, strict=True)
    )
    empty = sum(
        not any(any(tree.nodes[index].sampled) for index in tree.path(leaf))
        for leaf in tree.leaves()
    )
    assert total == pytest.approx(len(tree.leaves()) - empty)


def test_clipping_stops_the_gradient_on_the_earning_side_only() -> None:
    tree = two_leaf_tree((1.0, 0.0))
    (row,) = pack([tree], [credit(tree, CreditConfig(normalise="token"))], 100)
    row.behaviour.zero_()
    # targets: two shared tokens (advantage 0), the good leaf's, the bad leaf's
    up = torch.tensor([0.0, 0.0, 0.5, 0.5], requires_grad=True)
    objective = policy_loss(torch.zeros(4), None, row, LossConfig())
    objective(up, torch.zeros(4), slice(0, 4)).backward()
    assert up.grad is not None
    assert up.grad[2] == 0 and up.grad[3] == pytest.approx(float(torch.tensor(0.5).exp()))


def test_importance_correction_is_truncated() -> None:
    tree = two_leaf_tree((1.0, 0.0))
    (row,) = pack([tree], [credit(tree, CreditConfig(normalise="token"))], 100)
    row.behaviour = torch.tensor([0.0, 0.0, -0.3, -5.0])
    zeros = torch.zeros(4, requires_grad=True)
    objective = policy_loss(torch.zeros(4), None, row, LossConfig(importance_cap=2.0))
    objective(zeros, torch.zeros(4), slice(0, 4)).backward()
    assert zeros.grad is not None
    assert zeros.grad[2:].tolist() == pytest.approx([-float(torch.tensor(0.3).exp()), 2.0])


@given(st.lists(st.floats(-10, 0), min_size=2, max_size=2))
def test_kl_estimate_is_never_negative(pair: list[float]) -> None:
    assert low_variance_kl(torch.tensor(pair[0]), torch.tensor(pair[1])) >= -1e-6


def textbook(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    row: Row,
    config: LossConfig,
) -> torch.Tensor:
    """Every term by itself: importance correction * min(r A, clip(r) A), and the KL term."""
    loss = torch.zeros((), dtype=logprobs.dtype)
    for target, advantage, weight in zip(row.term_target, row.advantage, row.weight, strict=True):
        ratio = (logprobs[target] - old[target]).exp()
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        correction = (old[target] - row.behaviour[target]).exp().clamp(max=config.importance_cap)
        loss -= weight * correction * torch.minimum(ratio * advantage, clipped * advantage)
        loss += weight * config.kl * low_variance_kl(logprobs[target], reference[target])
    return loss


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_loss_equals_the_textbook(seed: int, once_per_leaf: bool) -> None:
    """Value and derivative, several terms of either sign on one token included."""
    trees = [random_tree(seed, 8)]
    (row,) = pack(trees, [credit(trees[0], CreditConfig(once_per_leaf=once_per_leaf))], 10_000)
    generator = torch.Generator().manual_seed(seed)
    old, change, reference = torch.randn(3, len(row.targets), generator=generator).double() * 0.4
    logprobs = (old + change).requires_grad_()
    config = LossConfig(kl=0.3)
    want = textbook(logprobs, old, reference, row, config)
    got = policy_loss(old, reference, row, config)(logprobs, old, slice(0, len(old)))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(each, logprobs)[0] for each in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_what_is_logged_of_a_row() -> None:
    tree = two_leaf_tree((1.0, 0.0))
    (row,) = pack([tree], [credit(tree, CreditConfig())], 100)
    row.behaviour = torch.tensor([0.0, 0.5, 0.0, 0.0])
    logprobs, old = torch.tensor([0.0, 0.1, 0.5, -0.5]), torch.zeros(4)
    logs = policy_logs(logprobs, old, logprobs + 1, row, LossConfig())
    assert (logs["tokens"], logs["clipped"], logs["mismatch"]) == (4, 2, 0.5)
    assert logs["kl"] == pytest.approx(4 * (torch.e - 2))
    assert "kl" not in policy_logs(logprobs, old, None, row, LossConfig())


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["leaf", "node", "nested", "tree", "depth"]),
    st.sampled_from(["uniform", "branching"]),
    st.sampled_from(["deviation", "mean"]),
)
def test_a_tree_whose_leaves_earned_the_same_teaches_nothing(
    seed: int, scheme: str, weights: Any, compare: Any
) -> None:
    tree = random_tree(seed, 10)
    for index, node in enumerate(tree.nodes):
        node.reward = 0.7 if index in tree.leaves() else 0.0
        node.done = not tree.children()[index]
        node.invalid = False
    config = CreditConfig(scheme=scheme, leaf_weights=weights, compare=compare)
    assert len(set(leaf_returns(tree, config).values())) == 1
    assert not teaches(credit(tree, config))
