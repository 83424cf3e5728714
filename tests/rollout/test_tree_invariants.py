"""Whatever the rule, the budget and the timing: trees are whole, exact and repeatable."""

from __future__ import annotations

from dataclasses import replace

import bigram
from corridor import Corridor, CorridorSource, SlowCorridor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_engine import ReferenceEngine
from rolling import chat, roll

from spark.core import Tree
from spark.rollout import RolloutConfig
from spark.rollout.chat import command_of

CONFIGS = st.builds(
    lambda roots, spare, **rest: RolloutConfig(
        leaves=roots + spare, roots=roots, max_tokens=16, **rest
    ),
    roots=st.integers(1, 4),
    spare=st.integers(1, 5),
    width=st.integers(2, 4),
    rule=st.sampled_from(
        ["spark", "entropy", "random", "fixed", "none", "arpo", "segment", "score"]
    ),
    branch_at=st.sampled_from(["next", "flagged"]),
    entropy_threshold=st.floats(0.1, 2.0),
    probability=st.floats(0.1, 0.9),
    fixed_turns=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
    pacing=st.sampled_from(["paced", "first_come"]),
    segment_tokens=st.integers(5, 30),
    planner=st.sampled_from(["none", "refill", "random", "entropy", "success"]),
    plan_spots=st.integers(1, 3),
    plan_rounds=st.integers(1, 3),
    max_generated_tokens=st.none() | st.integers(40, 400),
    horizon=st.integers(1, 7),
    constrain=st.booleans(),
    invalid_limit=st.none() | st.integers(1, 3),
)
WITHIN = st.builds(
    replace,
    CONFIGS.filter(lambda config: config.rule in ("spark", "entropy")),
    branch_at=st.just("within"),
)


# a trajectory flags a state with the last of its tokens
SPENT = RolloutConfig(
    leaves=8, roots=3, horizon=2, max_tokens=16, max_generated_tokens=112, constrain=False
)


@settings(max_examples=40, deadline=None)
@example(config=SPENT, seed=2)
@given(config=CONFIGS | WITHIN, seed=st.integers(0, 9))
def test_trees_are_whole_and_timing_does_not_matter(config: RolloutConfig, seed: int) -> None:
    calm = roll(config, seed=seed)
    delayed = ReferenceEngine(bigram.next_logits, bigram.tokenizer(), jitter=seed)
    rushed = roll(config, seed=seed, engine=delayed, source=CorridorSource(SlowCorridor))
    assert [tree.nodes for tree in calm] == [tree.nodes for tree in rushed]
    for tree in calm:
        replayed_rewards_agree(tree)


def replayed_rewards_agree(tree: Tree) -> None:
    """Play every path's commands in a fresh game: forks were exact if all its answers agree."""
    for leaf in tree.leaves():
        env = Corridor()
        env.reset(tree.task)
        path = [tree.nodes[index] for index in tree.path(leaf)]
        for turn in range(path[-1].turn + 1):
            parts = [node for node in path if node.turn == turn]
            pairs = [pair for n in parts for pair in zip(n.tokens, n.sampled, strict=True)]
            said = chat().decode([token for token, sampled in pairs if sampled])
            given_ = chat().decode([token for token, sampled in pairs if not sampled])
            command = command_of(said)
            if command is None:
                # cut off by a budget, or answered without asking the environment
                assert parts[-1].done or parts[-1].invalid
                continue
            admissible = env._admissible()
            observation, reward, *_ = env.step(command)
            assert parts[-1].reward == reward
            assert parts[-1].invalid == (command not in admissible)
            assert not given_ or observation in given_
