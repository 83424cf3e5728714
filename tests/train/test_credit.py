"""Credit and loss: the node rule against once-per-leaf, and the objective's corners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trees import random_tree, tiny_model

from spark.core import Node, Tree
from spark.train.attention import use_tree_attention
from spark.train.config import LossConfig
from spark.train.credit import CreditConfig, credit, leaf_returns
from spark.train.loss import low_variance_kl, policy_loss
from spark.train.pack import pack
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

    def share(logprobs: torch.Tensor, entropy: torch.Tensor, part: slice) -> torch.Tensor:
        inputs = (logprobs, old[part], reference[part], row.part(part), LossConfig())
        return policy_loss(*inputs)[0] / row.weight.sum()

    token_loss(model, row, share).backward()
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
    policy_loss(up, torch.zeros(4), None, row, LossConfig())[0].backward()
    assert up.grad is not None
    assert up.grad[2] == 0 and up.grad[3] == pytest.approx(float(torch.tensor(0.5).exp()))


def test_importance_correction_is_truncated() -> None:
    tree = two_leaf_tree((1.0, 0.0))
    (row,) = pack([tree], [credit(tree, CreditConfig(normalise="token"))], 100)
    row.behaviour = torch.tensor([0.0, 0.0, -0.3, -5.0])
    zeros = torch.zeros(4, requires_grad=True)
    policy_loss(zeros, torch.zeros(4), None, row, LossConfig(importance_cap=2.0))[0].backward()
    assert zeros.grad is not None
    assert zeros.grad[2:].tolist() == pytest.approx([-float(torch.tensor(0.3).exp()), 2.0])


@given(st.lists(st.floats(-10, 0), min_size=2, max_size=2))
def test_kl_estimate_is_never_negative(pair: list[float]) -> None:
    assert low_variance_kl(torch.tensor(pair[0]), torch.tensor(pair[1])) >= -1e-6
