"""The driver: where trees branch, what they cost, when they end."""

from __future__ import annotations

from dataclasses import replace

import bigram
from corridor import Corridor, CorridorSource, SlowCorridor
from reference_engine import ReferenceEngine
from rolling import CONFIG, TASKS, chat, roll

from spark.core import Tree
from spark.rollout import Event, RolloutConfig
from spark.rollout.chat import command_of


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
    config = replace(CONFIG, rule="random", probability=0.0, leaves=5, roots=2)
    assert [len(tree.leaves()) for tree in roll(config)] == [2, 2]
    for tree in roll(replace(config, planner="refill")):
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


def test_time_may_run_out_on_the_way() -> None:
    config = replace(CONFIG, max_seconds=0.1, horizon=200, max_tokens=4, constrain=False)
    trees = roll(config, source=CorridorSource(SlowCorridor))
    ends = {leaf["end"] for tree in trees for leaf in tree.info["leaves"]}
    assert "seconds" in ends
    assert not any(tree.info["errors"] for tree in trees)


def test_events_tell_what_happened() -> None:
    events: list[Event] = []
    trees = roll(on_event=events.append)

    def total(kind: str) -> int:
        return sum(event.count for event in events if event.kind == kind)

    assert total("turn") == sum(tree.info["generated"] for tree in trees)
    assert total("fork") == sum(tree.info["forks"] for tree in trees)
    assert total("leaf") == sum(len(tree.leaves()) for tree in trees)
    assert sorted(event.index for event in events if event.kind == "tree") == [0, 1]


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


def test_other_words_of_a_restored_environment_are_in_the_tree() -> None:
    class Forgetful(Corridor):
        def fork(self) -> Corridor:
            twin = super().fork()
            twin.differences = ["step 1 of 1 gave text 'b', but 'a' was recorded"]
            return twin

    source = CorridorSource(Forgetful)
    trees = roll(replace(CONFIG, rule="fixed", fixed_turns=(0,)), source=source)
    for tree in trees:
        told = tree.info["replay_differences"]
        assert len(told) == len(tree.leaves())
        assert sorted(one["lineage"] for one in told) == [one["lineage"] for one in told]
        assert {one["difference"].split(" gave")[0] for one in told} == {"step 1 of 1"}
