"""Self-imitation: what is kept, what is drawn, with which advantage and weight."""

from __future__ import annotations

import pytest
from random_trees import random_tree

from spark.core import Node, Tree
from spark.recipes.account import ArmAccount
from spark.recipes.arm import ArmRun
from spark.recipes.first_light import first_light
from spark.recipes.methods.siblings import spear
from spark.train.credit import CreditConfig
from spark.train.pack import pack
from spark.train.replay import Replay, ReplayConfig, chain_of
from spark.train.team import Team

CONFIG = ReplayConfig(size=6, draws=2, weight=0.5, ramp=0.4)
CREDIT = CreditConfig(success_reward=10.0, invalid_penalty=0.0)


def forked(rewards: tuple[float, ...], tag: int = 0) -> Tree:
    nodes = [Node(parent=None, turn=-1, tokens=[1], sampled=[False])]
    nodes.append(Node(parent=0, tokens=[tag, 3], sampled=[True, False]))
    nodes += [
        Node(parent=1, turn=1, tokens=[4 + k], sampled=[True], reward=reward, done=True)
        for k, reward in enumerate(rewards)
    ]
    for node in nodes:
        node.logprobs = node.log_kept_mass = [0.0] * len(node.tokens)
    return Tree(task="t", seed=0, nodes=nodes)


def test_the_path_of_a_leaf_is_a_tree_of_its_own() -> None:
    tree = random_tree(3, 12)
    for leaf in tree.leaves():
        chain = chain_of(tree, leaf)
        assert [node.parent for node in chain.nodes] == [None, *range(len(chain.nodes) - 1)]
        assert [n.tokens for n in chain.nodes] == [tree.nodes[i].tokens for i in tree.path(leaf)]
        assert chain.total_reward(chain.leaves()[0]) == tree.total_reward(leaf)
    assert any(node.parent != index - 1 for index, node in enumerate(tree.nodes) if index), "copied"


def test_imitation_replaces_exploration_along_a_half_cosine() -> None:
    assert [CONFIG.imitation(spent) for spent in (0.0, 0.2, 0.4, 1.0)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0]
    )


def test_only_leaves_better_than_their_tree_are_drawn_and_judged_anew() -> None:
    replay = Replay(CONFIG, CREDIT)
    assert replay.draw(1.0, 0) == []
    replay.add([forked((1.0, 0.0, 0.0)), forked((0.0, 0.0)), forked((1.0, 1.0))])
    # returns kept: the last six, 0 0 0 0 10 10: median 0, deviation sqrt(200 / 6)
    drawn = replay.draw(1.0, 0)
    ((tree, terms),) = drawn
    assert [node.tokens for node in tree.nodes] == [[1], [0, 3], [4]]
    assert terms[2][0].advantage == pytest.approx(10 / (200 / 6) ** 0.5)
    assert terms[2][0].weight == pytest.approx(0.5 / 2)
    assert replay.draw(0.2, 0)[0][1][1][0].weight == pytest.approx(0.25 / 2)
    assert replay.draw(0.0, 0) == []
    replay.add([forked((1.0, 1.0, 1.0, 1.0, 1.0, 1.0))])
    assert replay.draw(1.0, 0) == [], "winning is no longer better than usual"


def test_the_latest_are_kept_and_a_seed_repeats_the_draw() -> None:
    replay = Replay(CONFIG, CREDIT)
    replay.add([forked((1.0, 0.0, 0.0), tag=number) for number in range(20)])
    tags = {tree.nodes[1].tokens[0] for seed in range(40) for tree, _ in replay.draw(1.0, seed)}
    assert tags == set(range(14, 20))
    assert replay.draw(1.0, 5) == replay.draw(1.0, 5)
    trees, terms = zip(*replay.draw(1.0, 5), strict=True)
    (row,) = pack(trees, terms, 100)
    assert len(row.targets) == 4 and bool((row.advantage > 0).all())


def test_no_size_no_replay() -> None:
    replay = Replay(ReplayConfig(), CREDIT)
    replay.add([forked((1.0, 0.0))])
    assert replay.draw(1.0, 0) == []


TAGS = {"fresh": 0, "again": 20}


class Prepared(ArmRun):
    """An arm of the SPEAR recipe that only prepares minibatches, with its scores left out."""

    def __init__(self, spent: float) -> None:
        self.recipe, self.step, self._team = spear(first_light()), 3, Team()
        tokens = int(spent * (self.recipe.budget_tokens or 0))
        self.account = ArmAccount(generated_tokens=tokens)
        self._replay = Replay(self.recipe.train.replay, self.recipe.train.credit)
        self._replay.add([forked((1.0, 0.0, 0.0), TAGS["again"]) for _ in range(8)])

    def _example(self, row, total):
        return {"row": row, "total": total}


@pytest.mark.parametrize("spent", [0.05, 0.25, 0.6])
def test_replays_weigh_in_every_minibatch_what_they_should(spent: float) -> None:
    run = Prepared(spent)
    minibatches = run._prepare([forked((1.0, 0.0, 0.0, 0.0)) for _ in range(6)])
    replay = run.recipe.train.replay
    assert len(minibatches) == run.recipe.train.minibatches == 2
    for minibatch in minibatches:
        own = dict.fromkeys(TAGS, 0.0)
        for example in minibatch:
            row = example["row"]
            drawn = row.tokens[row.targets[row.term_target]].tolist()
            for token, weight in zip(drawn, row.weight.tolist(), strict=True):
                # the tag is the first decision
                own |= {name: own[name] + weight for name, tag in TAGS.items() if token == tag}
        # 3 fresh trees of 4 leaves against 4 chains: of every leaf the first of two decisions
        want = 4 * replay.weight * replay.imitation(spent) / (3 * 4)
        assert own["again"] / own["fresh"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("teaching", [0, 1])
def test_a_minibatch_without_fresh_trees_replays_nothing(teaching: int) -> None:
    alike = [forked((1.0, 1.0)) for _ in range(3)]
    fresh = [forked((1.0, 0.0, 0.0, 0.0)) for _ in range(teaching)]
    minibatches = Prepared(0.5)._prepare([*alike, *fresh])
    assert [bool(minibatch) for minibatch in minibatches] == [False, bool(teaching)]
