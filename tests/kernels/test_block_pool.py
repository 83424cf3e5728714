"""BlockPool: no sequence of calls loses, leaks or doubles a block; plans list shared runs once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spark_kernels import BlockPool, OutOfBlocks

NUM_BLOCKS = 24


class PoolMachine(RuleBasedStateMachine):
    """Random calls on a small pool, next to a model that holds every sequence's tokens."""

    @initialize(size=st.integers(1, 5))
    def start(self, size):
        self.size = size
        self.pool = BlockPool(NUM_BLOCKS, size)
        self.tokens: dict[int, list[int]] = {}
        # (block, slot) -> the token written there
        self.cache: dict[tuple[int, int], int] = {}
        self.next_token = 0

    @rule()
    def open(self):
        seq = self.pool.open()
        assert seq not in self.tokens
        self.tokens[seq] = []

    def snapshot(self):
        tables = {seq: self.pool.table(seq) for seq in self.tokens}
        return tables, self.pool.num_free, [self.pool.refcount(b) for b in range(NUM_BLOCKS)]

    @rule(data=st.data(), n=st.integers(0, 12))
    @precondition(lambda self: self.tokens)
    def append(self, data, n):
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        before, length = self.snapshot(), len(self.tokens[seq])
        needed = -(-(length + n) // self.size) - len(before[0][seq])
        if needed > self.pool.num_free:
            with pytest.raises(OutOfBlocks, match=f"append needs {needed} blocks"):
                self.pool.append(seq, n)
            assert self.snapshot() == before
            return
        self.pool.append(seq, n)
        table = self.pool.table(seq)
        for position in range(length, length + n):
            self.cache[table[position // self.size], position % self.size] = self.next_token
            self.tokens[seq].append(self.next_token)
            self.next_token += 1

    @rule(data=st.data(), n=st.integers(0, 4))
    @precondition(lambda self: self.tokens)
    def fork(self, data, n):
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        at = data.draw(st.none() | st.integers(0, len(self.tokens[seq])))
        length = len(self.tokens[seq]) if at is None else at
        before = self.snapshot()
        needed = n if length % self.size else 0
        if needed > self.pool.num_free:
            with pytest.raises(OutOfBlocks, match="fork needs"):
                self.pool.fork(seq, n, at)
            assert self.snapshot() == before
            return
        children, pairs = self.pool.fork(seq, n, at)
        assert len(children) == n and len(pairs) == needed
        assert before[1] - self.pool.num_free == needed
        assert self.pool.table(seq) == before[0][seq]
        for source, destination, used in pairs:
            assert 0 < used == length % self.size
            for slot in range(used):
                self.cache[destination, slot] = self.cache[source, slot]
        for child in children:
            assert child not in self.tokens
            self.tokens[child] = self.tokens[seq][:length]

    @rule(data=st.data())
    @precondition(lambda self: self.tokens)
    def release(self, data):
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        self.pool.release(seq)
        del self.tokens[seq]
        with pytest.raises(ValueError, match=f"seq {seq} is unknown or was released"):
            self.pool.length(seq)

    @rule(data=st.data())
    @precondition(lambda self: self.tokens)
    def plan(self, data):
        """A plan's runs cover each table exactly once; members of a run agree on its blocks."""
        ready = [seq for seq, tokens in self.tokens.items() if tokens and self.may_write(seq)]
        seqs = data.draw(st.permutations(ready))
        plan = self.pool.plan(seqs, [1] * len(seqs), share=data.draw(st.booleans()))
        assert plan.lengths == [len(self.tokens[seq]) for seq in seqs]
        assert plan.tables == [self.pool.table(seq) for seq in seqs]
        assert sorted(plan.order) == list(range(len(seqs)))
        covered = [0] * len(seqs)
        for first, count, begin, end in plan.runs:
            members = plan.order[first : first + count]
            assert begin < end and all(covered[m] == begin for m in members)
            assert len({tuple(plan.tables[m][begin:end]) for m in members}) == 1
            for m in members:
                covered[m] = end
        assert covered == [len(table) for table in plan.tables]

    def may_write(self, seq: int) -> bool:
        return self.pool.refcount(self.pool.table(seq)[-1]) == 1

    @invariant()
    def references_are_conserved(self):
        held = Counter(block for seq in self.tokens for block in self.pool.table(seq))
        for block in range(NUM_BLOCKS):
            assert self.pool.refcount(block) == held[block]
        assert self.pool.num_free == NUM_BLOCKS - len(held)
        assert self.pool.num_sequences == len(self.tokens)

    @invariant()
    def every_sequence_reads_its_own_tokens(self):
        for seq, tokens in self.tokens.items():
            table = self.pool.table(seq)
            assert self.pool.length(seq) == len(tokens)
            assert len(table) == -(-len(tokens) // self.size)
            places = [(table[p // self.size], p % self.size) for p in range(len(tokens))]
            assert [self.cache[place] for place in places] == tokens

    def teardown(self):
        for seq in self.tokens:
            self.pool.release(seq)
        assert self.pool.num_free == NUM_BLOCKS and self.pool.num_sequences == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def opened(pool: BlockPool, length: int) -> int:
    seq = pool.open()
    pool.append(seq, length)
    return seq


def test_nested_forks_share_what_their_ancestors_share():
    pool = BlockPool(200, 4)
    root = opened(pool, 40)
    kids, _ = pool.fork(root, 3)
    for kid in kids:
        pool.append(kid, 21)
    grandkids, pairs = pool.fork(kids[1], 2, at=58)
    assert len(pairs) == 2 and {used for _, _, used in pairs} == {2}
    leaves = [grandkids[0], kids[0], grandkids[1], kids[2]]
    for leaf in leaves:
        pool.append(leaf, 1)
    plan = pool.plan(leaves, [1] * 4)
    shared = sorted((count, begin, end) for _, count, begin, end in plan.runs if count > 1)
    assert shared == [(2, 10, 14), (4, 0, 10)]
    alone = pool.plan(leaves, [1] * 4, share=False)
    assert all(count == 1 and begin == 0 for _, count, begin, _ in alone.runs)


def test_a_short_shared_run_is_not_worth_a_merge():
    pool = BlockPool(100, 16)
    a, b = pool.fork(opened(pool, 16), 2)[0]
    for seq in (a, b):
        pool.append(seq, 100)
    assert all(count == 1 for _, count, _, _ in pool.plan([a, b], [1, 1]).runs)


def test_the_plan_is_its_words():
    pool = BlockPool(10, 4)
    plan = pool.plan([opened(pool, 9)], [2])
    words = memoryview(plan)
    assert words.format == "i" and words.ndim == 1
    again = type(plan)(words.tolist())
    assert (again.tables, again.lengths, again.runs) == (plan.tables, plan.lengths, plan.runs)
    with pytest.raises(ValueError, match="not those of a plan"):
        type(plan)([1, 2, 3])


def test_unknown_sequences_are_named():
    pool = BlockPool(4, 4)
    for call in (
        lambda: pool.append(7, 1),
        lambda: pool.fork(7, 2),
        lambda: pool.release(7),
        lambda: pool.table(7),
        lambda: pool.plan([7], [1]),
    ):
        with pytest.raises(ValueError, match="seq 7 is unknown or was released"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool, seq: BlockPool(0, 4), "num_blocks must be in"),
        (lambda pool, seq: BlockPool(4, 0), "block_size must be in"),
        (lambda pool, seq: pool.append(seq, -1), "n must be >= 0"),
        (lambda pool, seq: pool.append(seq, 2**31), "n must be >= 0 and keep"),
        (lambda pool, seq: pool.fork(seq, -1), "n must be >= 0"),
        (lambda pool, seq: pool.fork(seq, 1, 7), r"at must be in \[0, 6\], got 7"),
        (lambda pool, seq: pool.fork(seq, 1, -1), r"at must be in \[0, 6\], got -1"),
        (lambda pool, seq: pool.refcount(9), r"block must be in \[0, 8\), got 9"),
        (lambda pool, seq: pool.plan([seq], []), "one entry a sequence"),
        (lambda pool, seq: pool.plan([seq], [0]), r"must be in \[1, 6\]"),
        (lambda pool, seq: pool.plan([seq], [7]), r"must be in \[1, 6\]"),
        (lambda pool, seq: pool.plan([seq, seq], [1, 1]), "twice"),
    ],
)
def test_bad_calls(call, message):
    pool = BlockPool(8, 4)
    seq = opened(pool, 6)
    with pytest.raises(ValueError, match=message):
        call(pool, seq)
    assert pool.num_free == 6 and pool.length(seq) == 6


def test_a_plan_may_not_overwrite_what_a_fork_holds():
    pool = BlockPool(8, 4)
    parent = opened(pool, 8)
    child = pool.fork(parent, 1)[0][0]
    with pytest.raises(ValueError, match="shared with a fork"):
        pool.plan([parent], [1])
    pool.append(child, 2)
    with pytest.raises(ValueError, match=r"query_lens\[0\] of seq 1 is 3"):
        pool.plan([child], [3])
    assert pool.plan([child], [2]).query_offsets == [0, 2]


def test_out_of_blocks_is_a_runtime_error():
    assert issubclass(OutOfBlocks, RuntimeError)
    with pytest.raises(OutOfBlocks, match="needs 3 blocks, 2 of 2 are free: release"):
        opened(BlockPool(2, 4), 9)
