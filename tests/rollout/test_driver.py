"""The driver: trees are whole, exact and repeatable, whatever fails and whenever things happen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import bigram
import pytest
from corridor import Corridor, CorridorSource, SlowCorridor
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_engine import ReferenceEngine

from spark.core import Tree
from spark.rollout import Chat, Event, RolloutConfig, RolloutError, rollout
from spark.rollout.chat import command_of

CONFIG = RolloutConfig(leaves=6, roots=2, horizon=8, max_tokens=16)
TASKS = ["corridor/4/5", "corridor/3/2"]


def chat() -> Chat:
    return Chat(bigram.tokenizer())


def roll(
    config: RolloutConfig = CONFIG,
    tasks: list[str] = TASKS,
    seed: int = 0,
    source: CorridorSource | None = None,
    engine: ReferenceEngine | None = None,
    **options: Any,
) -> list[Tree]:
    """Roll out and check what must hold of every rollout."""
    source = source or CorridorSource()
    engine = engine or ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    trees = asyncio.run(
        rollout(
            tasks,
            engine=engine,
            source=source,
            chat=chat(),
            config=config,
            seed=seed,
            **options,
        )
    )
    assert not engine.live, "sequences leaked"
    assert all(env.closed for env in source.made), "environments leaked"
    for tree in trees:
        check(tree, config)
    return trees


def check(tree: Tree, config: RolloutConfig) -> None:
    """Assert what every tree satisfies."""
    leaves = tree.leaves()
    described = tree.info["leaves"]
    assert len(leaves) <= config.leaves
    assert [leaf["node"] for leaf in described] == (leaves if len(tree.nodes) > 1 else [])
    for leaf in described:
        assert tree.nodes[leaf["node"]].done == (leaf["end"] != "error")
    assert len({tuple(leaf["lineage"]) for leaf in described}) == len(described)
    for index, node in enumerate(tree.nodes):
        assert (node.parent is None) == (index == 0)
        assert node.parent is None or node.parent < index
        assert index in leaves or not node.done
        assert len({len(x) for x in (node.tokens, node.sampled, node.logprobs)}) == 1
    for children in tree.children()[1:]:
        parent = tree.nodes[tree.nodes[children[0]].parent] if children else None
        assert parent is None or (len(children) > 1) == (parent.trigger is not None)
    assert tree.info["generated"] == sum(sum(node.sampled) for node in tree.nodes)
    budget = config.max_generated_tokens
    assert budget is None or tree.info["generated"] <= budget


CONFIGS = st.builds(
    lambda roots, spare, **rest: RolloutConfig(
        leaves=roots + spare, roots=roots, max_tokens=16, **rest
    ),
    roots=st.integers(1, 4),
    spare=st.integers(0, 5),
    width=st.integers(2, 4),
    rule=st.sampled_from(["spark", "entropy", "random", "fixed", "none"]),
    branch_at=st.sampled_from(["next", "flagged"]),
    entropy_threshold=st.floats(0.1, 2.0),
    probability=st.floats(0.1, 0.9),
    fixed_turns=st.lists(st.integers(0, 6), max_size=3).map(tuple),
    pacing=st.sampled_from(["paced", "first_come"]),
    refill=st.booleans(),
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


@settings(max_examples=40, deadline=None)
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


def success(tree: Tree) -> list[bool]:
    return [leaf["won"] for leaf in tree.info["leaves"]]


def test_accounts_agree_with_the_engine() -> None:
    for branch_at in ("next", "flagged", "within"):
        engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
        trees = roll(replace(CONFIG, branch_at=branch_at, pacing="first_come"), engine=engine)
        stats, infos = engine.stats(), [tree.info for tree in trees]
        assert stats["generated"] == sum(info["generated"] for info in infos)
        assert stats["reused"] == sum(info["reused"] for info in infos) > 0
        roots = CONFIG.roots * len(trees)
        assert stats["forks"] == roots + sum(info["forks"] for info in infos)
        given_tokens = sum(n.sampled.count(False) for tree in trees for n in tree.nodes)
        assert stats["prefilled"] == given_tokens


def test_reused_is_what_leaves_share() -> None:
    """Summed over the leaves, a path is what was generated for it and what it was given."""
    for tree in roll(replace(CONFIG, pacing="first_come", branch_at="next")):
        paths = [sum(sum(tree.nodes[i].sampled) for i in tree.path(leaf)) for leaf in tree.leaves()]
        assert sum(paths) == tree.info["generated"] + tree.info["reused"]


def test_the_seed_changes_the_tree_and_repeats_it() -> None:
    first, again, other = roll(seed=1), roll(seed=1), roll(seed=2)
    assert [t.nodes for t in first] == [t.nodes for t in again]
    assert [t.nodes for t in first] != [t.nodes for t in other]


def test_a_tree_does_not_depend_on_its_company() -> None:
    together = roll(tasks=[TASKS[0], TASKS[1], TASKS[0]])
    alone = roll(tasks=[TASKS[0]])
    assert alone[0].nodes == together[0].nodes
    assert together[0].nodes != together[2].nodes


def test_next_shares_the_flagged_decision_and_flagged_does_not() -> None:
    fixed = replace(CONFIG, rule="fixed", fixed_turns=(1,), pacing="first_come", leaves=4)
    for branch_at, flagged_turn in (("next", 1), ("flagged", 0)):
        (tree,) = roll(replace(fixed, branch_at=branch_at), tasks=TASKS[:1])
        forks = [node for node in tree.nodes if node.trigger]
        assert [node.turn for node in forks] == [flagged_turn] * 2
        assert all(node.trigger == "fixed" for node in forks)


def test_within_forks_right_after_the_tag() -> None:
    (tree,) = roll(replace(CONFIG, branch_at="within", pacing="first_come"), tasks=TASKS[:1])
    forks = [index for index, node in enumerate(tree.nodes) if node.trigger == "explore"]
    assert forks
    for index in forks:
        said = chat().decode(tree.nodes[index].tokens)
        assert said.endswith("</explore>")
        for child in tree.children()[index]:
            assert tree.nodes[child].turn == tree.nodes[index].turn


def test_entropy_within_forks_after_an_unsure_token() -> None:
    config = replace(CONFIG, rule="entropy", branch_at="within", entropy_threshold=1.0)
    trees = roll(replace(config, pacing="first_come"))
    forks = [node for tree in trees for node in tree.nodes if node.trigger]
    assert forks
    assert all(node.entropies[-1] > 1.0 for node in forks)


def test_chains_and_greedy_evaluation() -> None:
    (tree,) = roll(replace(CONFIG, rule="none", roots=1), tasks=TASKS[:1])
    assert [leaf["lineage"] for leaf in tree.info["leaves"]] == [[i] for i in range(CONFIG.leaves)]
    (tree,) = roll(RolloutConfig(leaves=1, roots=1, rule="none", temperature=0.0), tasks=TASKS[:1])
    assert len(tree.leaves()) == 1


def test_paced_forks_reuse_a_fifth_and_first_come_does_not() -> None:
    """N=8, M=4, trigger rate 0.4, 16 turns: the setting of the paper."""
    base = RolloutConfig(rule="random", probability=0.4, horizon=16, max_tokens=16)
    tasks = ["corridor/40/11"] * 4
    share = {}
    for pacing in ("paced", "first_come"):
        trees = roll(replace(base, pacing=pacing), tasks=tasks)
        reused = sum(tree.info["reused"] for tree in trees)
        share[pacing] = reused / (reused + sum(tree.info["generated"] for tree in trees))
        assert sum(len(tree.leaves()) for tree in trees) == 8 * 4
    assert share["first_come"] < 0.12
    assert share["paced"] >= 0.20


def test_refill_fills_up_and_never_duplicates() -> None:
    config = replace(CONFIG, rule="fixed", fixed_turns=(), leaves=5, roots=2)
    assert [len(tree.leaves()) for tree in roll(config)] == [2, 2]
    for tree in roll(replace(config, refill=True)):
        assert [leaf["lineage"] for leaf in tree.info["leaves"]] == [[i] for i in range(5)]


def test_a_finished_trajectory_never_branches() -> None:
    config = replace(CONFIG, rule="random", probability=1.0, horizon=1)
    assert all(tree.info["forks"] == 0 for tree in roll(config))
    for tree in roll(replace(config, horizon=40, max_tokens=16, leaves=20), tasks=["corridor/1/0"]):
        assert any(success(tree))


def test_token_budget_ends_trajectories() -> None:
    trees = roll(replace(CONFIG, max_generated_tokens=60, horizon=50))
    assert {leaf["end"] for tree in trees for leaf in tree.info["leaves"]} <= {
        "tokens",
        "environment",
    }


def test_time_budget_ends_trajectories() -> None:
    trees = roll(replace(CONFIG, max_seconds=1e-9))
    assert all(len(tree.nodes) == 1 for tree in trees)


def test_events_tell_what_happened() -> None:
    events: list[Event] = []
    trees = roll(on_event=events.append)

    def total(kind: str) -> int:
        return sum(event.count for event in events if event.kind == kind)

    assert total("turn") == sum(tree.info["generated"] for tree in trees)
    assert total("fork") == sum(tree.info["forks"] for tree in trees)
    assert total("leaf") == sum(len(tree.leaves()) for tree in trees)
    assert sorted(event.index for event in events if event.kind == "tree") == [0, 1]


class Raising(Corridor):
    """Fails at the third step of a trajectory that went left first."""

    def step(self, action: str) -> Any:
        if len(self.actions) == 2 and self.actions[0] == "go left":
            raise RuntimeError("the floor gave way")
        return super().step(action)


class Mute(Corridor):
    """Answers with bytes in place of text when the trajectory went left first."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        broken = len(self.actions) == 3 and self.actions[0] == "go left"
        return (b"bytes" if broken else observation, *rest)


class Hanging(Corridor):
    """Never answers the third step of a trajectory that went left first."""

    async def step_async(self, action: str) -> Any:
        if len(self.actions) == 2 and self.actions[0] == "go left":
            await asyncio.sleep(3600)
        return self.step(action)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Raising, "RuntimeError: the floor gave way"),
        (Mute, "TypeError: the environment returned bytes as its observation, not text"),
        (Hanging, "TimeoutError: the environment's step took over 0.05 s"),
    ],
)
def test_a_broken_environment_fails_its_trajectory_only(kind: type[Corridor], message: str) -> None:
    config = replace(CONFIG, rule="none", step_seconds=0.05)
    (tree,) = roll(config, tasks=["corridor/4/5"], source=CorridorSource(kind), seed=3)
    (healthy,) = roll(config, tasks=["corridor/4/5"], seed=3)
    ends = [leaf["end"] for leaf in tree.info["leaves"]]
    assert 0 < ends.count("error") < len(ends)
    assert {error["error"] for error in tree.info["errors"]} == {message}
    for leaf in tree.info["leaves"]:
        path = [tree.nodes[index] for index in tree.path(leaf["node"])]
        twin = next(x for x in healthy.info["leaves"] if x["lineage"] == leaf["lineage"])
        expected = [healthy.nodes[index] for index in healthy.path(twin["node"])]
        # what was computed before the failure is kept
        tokens = [token for node in path for token in node.tokens]
        assert tokens == [token for node in expected for token in node.tokens][: len(tokens)]


def test_nan_logits_fail_their_trajectory_only() -> None:
    left = bigram.tokenizer().convert_tokens_to_ids("left")

    def poisoned(tokens: list[int]) -> Any:
        logits = bigram.next_logits(tokens).clone()
        return logits * float("nan") if tokens.count(left) > 1 else logits

    engine = ReferenceEngine(poisoned, bigram.tokenizer())
    trees = roll(replace(CONFIG, rule="none", leaves=8), engine=engine)
    ends = [leaf["end"] for tree in trees for leaf in tree.info["leaves"]]
    assert 0 < ends.count("error") < len(ends)


def test_a_tree_that_cannot_start_says_why() -> None:
    bad, good = roll(tasks=["maze/1", TASKS[0]])
    assert bad.nodes == []
    assert bad.info["errors"][0]["error"] == "ValueError: unknown task 'maze/1'"
    assert len(good.leaves()) > 1


def test_nothing_but_failures_is_an_error() -> None:
    with pytest.raises(RolloutError, match=r"every trajectory failed.*unknown task 'maze/1'"):
        roll(tasks=["maze/1", "maze/2"])


class NoTwins(Corridor):
    """Only the environment that was reset can be forked."""

    original = False

    def reset(self, task: str, seed: int = 0) -> Any:
        self.original = True
        return super().reset(task, seed)

    def fork(self) -> Corridor:
        if not self.original:
            raise RuntimeError("no second world")
        return super().fork()


def test_a_failed_fork_leaves_the_trajectory_alone() -> None:
    config = replace(CONFIG, rule="random", probability=1.0, pacing="first_come")
    (tree,) = roll(config, tasks=TASKS[:1], source=CorridorSource(NoTwins))
    assert len(tree.leaves()) == CONFIG.roots
    assert tree.info["errors"]
    assert all(leaf["end"] != "error" for leaf in tree.info["leaves"])


def test_cancelling_frees_everything_and_keeps_finished_trees() -> None:
    source = CorridorSource()
    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    kept: list[Tree] = []

    async def interrupted() -> None:
        job: asyncio.Task[Any]

        def on_event(event: Event) -> None:
            if event.tree is not None:
                kept.append(event.tree)
                job.cancel()

        tasks = [*TASKS, *["corridor/40/3"] * 3]
        config = replace(CONFIG, horizon=30)
        run = rollout(
            tasks,
            engine=engine,
            source=source,
            chat=chat(),
            config=config,
            seed=0,
            on_event=on_event,
        )
        job = asyncio.create_task(run)
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(interrupted())
    assert 1 <= len(kept) < 5
    assert not engine.live
    assert all(env.closed for env in source.made)


def test_an_error_of_the_listener_is_raised_as_it_is() -> None:
    def full(event: Event) -> None:
        if event.tree is not None:
            raise OSError("disk full")

    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    with pytest.raises(OSError, match="disk full"):
        roll(engine=engine, on_event=full)
    assert not engine.live


def test_invalid_commands_are_marked_and_may_end_the_episode() -> None:
    free = replace(CONFIG, constrain=False, rule="none", leaves=8)
    trees = roll(free)
    assert any(node.invalid for tree in trees for node in tree.nodes)
    limited = roll(replace(free, invalid_limit=1))
    for tree in limited:
        for leaf in tree.info["leaves"]:
            invalid = sum(tree.nodes[index].invalid for index in tree.path(leaf["node"]))
            assert invalid == (leaf["end"] == "invalid")


def test_constrained_decisions_are_admissible() -> None:
    look = bigram.tokenizer().convert_tokens_to_ids(["look"])
    for tree in roll(replace(CONFIG, constrain=True, exclude_commands=("look",))):
        for node in tree.nodes:
            command = command_of(chat().decode(node.tokens)) if node.turn >= 0 else None
            assert command is None or not node.invalid
            # nothing but "look" is left in a last room without the key
            assert command != "look" or node.allowed[min(node.allowed)] == look
            for offset, ids in node.allowed.items():
                assert node.tokens[offset] in ids
