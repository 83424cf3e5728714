"""Forks inside the engine: every child equals an independent request, and no block leaks."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness
from models import greedy, prompt

from spark.engines.vllm.branch import Branch

pytestmark = pytest.mark.vllm

BLOCK = 32


def offsets(length: int) -> list[int]:
    """Return positions around block boundaries and others, 1 to `length`."""
    near = {BLOCK * k + d for k in range(1, length // BLOCK + 1) for d in (-2, -1, 0, 1, 2)}
    return sorted(p for p in near | set(range(1, length, 7)) | {length} if 1 <= p <= length)


@pytest.fixture(autouse=True)
def nothing_leaks(engines: Any) -> Any:
    yield
    for harness in engines.made.values():
        assert not harness.streams, f"not looked at: {list(harness.streams)}"
        harness.reset()
        assert harness.in_use() == 0


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_children_at_every_kind_of_offset(engines: Any, family: str) -> None:
    """The parent runs while the first children come, and has finished when the last ones do."""
    harness: Harness = engines(family)
    tokens, new = prompt(200, 1), 90
    whole = tokens + greedy(family, tokens, new)
    harness.add("parent", tokens, Branch(name="p", hold=True), max_tokens=new)
    harness.until("parent", 60)
    points = offsets(200 + len(harness.streams["parent"].tokens))
    assert len(points) >= 60
    for at in reversed(points):
        harness.add(f"child{at}", whole[:at], Branch(parent="p", fork_at=at), max_tokens=3)
        harness.step()
    harness.finish()
    for at in points:
        stream = harness.streams.pop(f"child{at}")
        assert stream.tokens == greedy(family, whole[:at], 3), at
        assert stream.scores.fork_path == ("exact" if at > 1 else "recompute"), at
        assert stream.scores.recomputed == 1
    assert harness.streams.pop("parent").tokens == whole[200:]
    assert harness.in_use() > 0, "the finished parent is held"
    harness.release("p")
    assert harness.in_use() == 0


def test_forced_tokens_after_the_fork(engines: Any) -> None:
    harness: Harness = engines()
    tokens = prompt(75, 2)
    want = greedy("qwen3", tokens, 20)
    harness.add("parent", tokens, Branch(name="p"), max_tokens=20)
    harness.until("parent", 12)
    for other in (3, 50, 96):
        forced = [*tokens, *want[:9], other, 7]
        harness.add(f"child{other}", forced, Branch(parent="p", fork_at=84), max_tokens=10)
    harness.finish()
    for other in (3, 50, 96):
        stream = harness.streams.pop(f"child{other}")
        assert stream.tokens == greedy("qwen3", [*tokens, *want[:9], other, 7], 10)
        assert (stream.scores.fork_path, stream.scores.recomputed) == ("exact", 0)
    assert harness.streams.pop("parent").tokens == want


def test_forks_of_forks_outlive_their_ancestors(engines: Any) -> None:
    harness: Harness = engines()
    tokens = prompt(61, 3)
    want = greedy("qwen3", tokens, 80)
    harness.add("g0", tokens, Branch(name="0"), max_tokens=200)
    for depth in range(1, 6):
        before = f"g{depth - 1}"
        harness.until(before, 9)
        at = 61 + 9 * depth
        mine = Branch(name=str(depth), parent=str(depth - 1), fork_at=at)
        harness.add(
            f"g{depth}", tokens + want[: 9 * depth], mine, max_tokens=200 if depth < 5 else 30
        )
        harness.step()
        assert harness.streams[f"g{depth}"].scores.fork_path == "exact"
        harness.abort(before)
        del harness.streams[before]
    harness.finish()
    assert harness.streams.pop("g5").tokens == want[45:75]


def test_a_parent_aborted_before_the_child_came(engines: Any) -> None:
    harness: Harness = engines()
    tokens = prompt(150, 4)
    want = greedy("qwen3", tokens, 40)
    harness.add("parent", tokens, Branch(name="p"), max_tokens=100)
    harness.until("parent", 20)
    harness.abort("parent")
    del harness.streams["parent"]
    harness.add("child", tokens + want[:20], Branch(parent="p", fork_at=170), max_tokens=20)
    harness.finish()
    stream = harness.streams.pop("child")
    assert stream.tokens == want[20:]
    # the full blocks are still in the prefix cache
    assert (stream.scores.fork_path, stream.scores.recomputed) == ("cache", 170 - 5 * BLOCK)


def test_another_prefix_is_not_shared(engines: Any) -> None:
    harness: Harness = engines()
    tokens, other = prompt(70, 5), prompt(70, 6)
    harness.add("parent", tokens, Branch(name="p"), max_tokens=10)
    harness.until("parent", 2)
    for name, given in (("p", other), ("nobody", prompt(70, 16))):
        harness.add(name, given, Branch(parent=name, fork_at=70), max_tokens=5)
    harness.finish()
    harness.streams.pop("parent")
    for name, given in (("p", other), ("nobody", prompt(70, 16))):
        stream = harness.streams.pop(name)
        assert stream.tokens == greedy("qwen3", given, 5)
        assert (stream.scores.fork_path, stream.scores.recomputed) == ("recompute", 70)


def test_preemption_in_a_small_pool(engines: Any) -> None:
    """Children and strangers fight for blocks; preempted parents and children come back right."""
    harness: Harness = engines(num_gpu_blocks_override=48)
    tokens = prompt(90, 7)
    want = greedy("qwen3", tokens, 60)
    harness.add("parent", tokens, Branch(name="p", hold=True), max_tokens=60)
    harness.until("parent", 10)
    points = [90 + k % 11 for k in range(28)]
    for index, at in enumerate(points):
        child = Branch(name=f"c{index}", parent="p", fork_at=at, hold=True)
        harness.add(f"child{index}", tokens + want[: at - 90], child, max_tokens=50)
        if index % 4 == 0:
            harness.add(f"stranger{index}", prompt(40, index), max_tokens=30)
    most = 0
    while harness.engine.has_unfinished_requests():
        harness.step()
        preempted = (r.num_preemptions for r in harness.scheduler.requests.values())
        most = max(most, sum(preempted))
    assert most >= 5, "the pool is small enough"
    assert harness.streams.pop("parent").tokens == want
    for index, at in enumerate(points):
        assert harness.streams.pop(f"child{index}").tokens == greedy(
            "qwen3", tokens + want[: at - 90], 50
        )
        if index % 4 == 0:
            assert harness.streams.pop(f"stranger{index}").tokens == greedy(
                "qwen3", prompt(40, index), 30
            )


def test_held_parents_give_way_and_expire(engines: Any) -> None:
    harness: Harness = engines(num_gpu_blocks_override=48)
    held = harness.scheduler.forks.held
    for index in range(6):
        branch = Branch(name=f"h{index}", hold=True)
        harness.add(f"held{index}", prompt(200, 10 + index), branch, max_tokens=2)
        harness.finish()
        del harness.streams[f"held{index}"]
    assert len(held) == 6
    harness.add("big", prompt(900, 20), max_tokens=3)
    harness.finish()
    assert harness.streams.pop("big").tokens == greedy("qwen3", prompt(900, 20), 3)
    assert 0 < len(held) < 6, "the oldest went first, and no more than needed"
    assert held.get("h5") is not None and held.get("h0") is None
    held._clock = lambda: float("inf")
    harness.add("next", prompt(5, 1), max_tokens=1)
    harness.finish()
    del harness.streams["next"]
    assert len(held) == 0 and harness.in_use() == 0


def test_release_before_the_end_means_no_hold(engines: Any) -> None:
    harness: Harness = engines()
    harness.add("parent", prompt(50, 8), Branch(name="p", hold=True), max_tokens=10)
    harness.until("parent", 3)
    harness.release("p")
    harness.finish()
    assert len(harness.streams.pop("parent").tokens) == 10
    assert harness.in_use() == 0


@pytest.mark.parametrize(
    ("branch", "params", "field"),
    [
        (Branch(parent="p", fork_at=11), {}, "fork_at=11"),
        (Branch(parent="p", fork_at=-1), {}, "fork_at=-1"),
        (Branch(prompt_length=0), {}, "prompt_length=0"),
        (Branch(name="x"), {"n": 2, "temperature": 1.0}, "n=2"),
        (Branch(parent="p", fork_at=3), {"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_bad_branches_are_refused(engines: Any, branch: Branch, params: dict, field: str) -> None:
    harness: Harness = engines()
    with pytest.raises(ValueError, match=field):
        harness.add("bad", prompt(10), branch, **params)


def test_chunked_prefill(engines: Any) -> None:
    harness: Harness = engines(max_num_batched_tokens=40, max_num_seqs=32)
    tokens = prompt(170, 9)
    want = greedy("qwen3", tokens, 30)
    harness.add("parent", tokens, Branch(name="p"), max_tokens=30)
    harness.add("stranger", prompt(130, 10), max_tokens=9)
    harness.until("parent", 5)
    late = [*tokens, *want[:5], *prompt(100, 11)]
    harness.add("long", late, Branch(parent="p", fork_at=175), max_tokens=6)
    harness.add("tip", tokens + want[:5], Branch(parent="p", fork_at=175), max_tokens=6)
    harness.finish()
    assert harness.streams.pop("parent").tokens == want
    assert harness.streams.pop("stranger").tokens == greedy("qwen3", prompt(130, 10), 9)
    for name, given in (("long", late), ("tip", tokens + want[:5])):
        stream = harness.streams.pop(name)
        assert stream.tokens == greedy("qwen3", given, 6)
        assert stream.scores.fork_path == "exact"
        assert len(stream.scores.entropies) == 6
