"""Packed rows: structure, and log-probabilities against one forward pass per path."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import VOCAB, random_tree, tiny_model

from spark.core import Node, Tree
from spark.train.attention import use_tree_attention
from spark.train.config import LossConfig
from spark.train.credit import CreditConfig, Term, credit
from spark.train.loss import policy_loss
from spark.train.pack import pack, trained_offsets
from spark.train.policy import token_logprobs, token_loss


def packed(trees: list[Tree], max_tokens: int = 10_000) -> list:
    return pack(trees, [credit(tree, CreditConfig()) for tree in trees], max_tokens)


def unpacked_logprobs(model, tree: Tree, temperature: float) -> dict[tuple[int, int], float]:
    """One plain forward pass per leaf; (node, offset) -> log-probability of the token."""
    found = {}
    for leaf in tree.leaves():
        path = tree.path(leaf)
        tokens = [token for index in path for token in tree.nodes[index].tokens]
        logits = model(torch.tensor([tokens])).logits[0] / temperature
        position = 0
        for index in path:
            node = tree.nodes[index]
            for offset in trained_offsets(node):
                row = logits[position + offset - 1].clone()
                if offset in node.allowed:
                    hidden = torch.ones(VOCAB, dtype=torch.bool)
                    hidden[node.allowed[offset]] = False
                    row[hidden] = float("-inf")
                found[index, offset] = row.log_softmax(0)[node.tokens[offset]].item()
            position += len(node.tokens)
    return found


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logprobs_equal_unpacked(family: str, temperature: float) -> None:
    model = tiny_model(family=family)
    trees = [random_tree(seed, nodes=12) for seed in range(6)]
    expected = [unpacked_logprobs(model, tree, temperature) for tree in trees]
    use_tree_attention(model)
    (row,) = packed(trees)
    actual = token_logprobs(model, row, temperature).tolist()
    # depth-first order is not node order, so compare as sorted lists of each tree's values
    wanted = sorted(value for tree in expected for value in tree.values())
    assert len(actual) == len(wanted) > 50
    assert sorted(actual) == pytest.approx(wanted, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20))
def test_mask_is_the_ancestor_closure(seed: int, nodes: int) -> None:
    tree = random_tree(seed, nodes)
    (row,) = packed([tree])
    mask = row.mask()
    # every (node, offset) in packed order, by a recursive walk of its own
    children = tree.children()

    def walk(index: int) -> list[tuple[int, int]]:
        own = [(index, offset) for offset in range(len(tree.nodes[index].tokens))]
        return own + [item for kid in children[index] for item in walk(kid)]

    order = walk(0)
    assert row.tokens.tolist() == [tree.nodes[index].tokens[offset] for index, offset in order]
    for query, (index, offset) in enumerate(order):
        path = tree.path(index)
        seen = [
            (a, o) in {(index, k) for k in range(offset + 1)} or a in path[:-1] for a, o in order
        ]
        assert mask[query].tolist() == seen
        assert row.positions[query] == sum(seen) - 1
    assert [s.start for s in row.segments[1:]] == [s.stop for s in row.segments[:-1]]
    for index, segment in enumerate(row.segments):
        path = [row.segments[part] for part in row.ancestry(index)]
        keys = [k for part in path for k in range(part.start, part.stop)]
        for query in range(segment.start, segment.stop):
            assert [k for k in keys if k <= query] == mask[query].nonzero()[:, 0].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 60))
def test_bounded_rows_train_every_token_once(seed: int, max_tokens: int) -> None:
    trees = [random_tree(seed + k, 10) for k in range(3)]
    rows = packed(trees, max_tokens)
    (whole,) = packed(trees)
    longest = max(
        sum(len(tree.nodes[index].tokens) for index in tree.path(leaf))
        for tree in trees
        for leaf in tree.leaves()
    )
    assert max(len(row.tokens) for row in rows) <= max(max_tokens, longest)
    assert sum(len(row.targets) for row in rows) == len(whole.targets)
    assert sum(row.weight.sum() for row in rows) == pytest.approx(float(whole.weight.sum()))


def test_split_rows_give_the_same_logprobs() -> None:
    model = tiny_model()
    use_tree_attention(model)
    trees = [random_tree(seed, 14) for seed in range(4)]
    (whole,) = packed(trees)
    rows = packed(trees, 30)
    assert len(rows) > 4
    parts = torch.cat([token_logprobs(model, row) for row in rows])
    torch.testing.assert_close(
        parts.sort().values, token_logprobs(model, whole).sort().values, atol=1e-5, rtol=0
    )


def test_forced_tokens_are_not_trained() -> None:
    node = Node(parent=0, tokens=[1, 2, 3], sampled=[True, True, False], allowed={1: [2]})
    assert trained_offsets(node) == [0]


def test_what_has_no_weight_is_not_trained() -> None:
    failed, won = (
        Node(parent=0, turn=0, tokens=[tag, 3], sampled=[True, False], logprobs=[0.0] * 2)
        for tag in (1, 2)
    )
    prompt = Node(parent=None, tokens=[0], sampled=[False], logprobs=[0.0])
    tree = Tree(task="t", seed=0, nodes=[prompt, failed, won])
    for node in tree.nodes:
        node.log_kept_mass = [0.0] * len(node.tokens)
    nothing, all_of_it = Term(advantage=0.0, weight=0.0), Term(advantage=1.0, weight=1.0)
    (row,) = pack([tree], [[[nothing], [nothing], [all_of_it]]], 99)
    assert row.tokens[row.targets].tolist() == [2]
    # a row with nothing to train can be trained on, as processes without trees do
    (row,) = pack([tree], [[[nothing]] * 3], 99)
    model = tiny_model()
    use_tree_attention(model)
    loss = policy_loss(torch.empty(0), None, row, LossConfig())
    token_loss(model, row, loss).loss.backward()


def test_deep_chain_does_not_recurse() -> None:
    tree = Tree(task="deep", seed=0, nodes=[Node(parent=None, tokens=[1], sampled=[False])])
    for index in range(3000):
        node = copy.deepcopy(tree.nodes[0])
        node.parent = index
        tree.nodes.append(node)
    (row,) = packed([tree])
    assert len(row.segments) == 1
    assert row.positions.tolist() == list(range(3001))
