"""What trees claim of the scheduler's KV pool: locked prefixes and copied pages, tree by tree."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spark.engines.sglang import versions
from spark.engines.sglang.member import Member
from spark.engines.sglang.tail import Pages, Tail


@dataclass(slots=True)
class Finished:
    """A member that has finished, as long as its KV is claimed."""

    tokens: array[int]
    slots: Tensor
    """Of its tokens in whole pages, int64; the radix tree owns them, locked."""
    tail: Tail | None


@dataclass(slots=True)
class Claim:
    """What one tree holds."""

    unlocks: list[Callable[[], None]] = field(default_factory=list)
    finished: dict[str, Finished] = field(default_factory=dict)
    waiting: dict[str, Tail] = field(default_factory=dict)
    """Request id of a child that was not prefilled yet -> the page copied for it."""


class Claims:
    """All claims of one scheduler. Every rank of a tensor-parallel group makes the same ones."""

    def __init__(self, cache: Any, pages: Pages) -> None:
        self._cache = cache
        self._pages = pages
        self._publishes_running = versions.publishes_running(cache)
        # the tree that was used last comes last
        self._trees: dict[str, Claim] = {}
        self.known: dict[str, set[str]] = {}

    @property
    def held_tokens(self) -> int:
        """Tokens of pool that only claims hold: neither free, nor the radix tree's."""
        tails = sum(
            len(claim.waiting) + sum(f.tail is not None for f in claim.finished.values())
            for claim in self._trees.values()
        )
        return tails * self._pages.size

    def join(self, member: Member, rid: str) -> None:
        """Remember that `rid` belongs to the member's tree."""
        assert member.tree is not None
        self.known.setdefault(member.tree, set()).add(rid)

    def share(self, member: Member, rid: str, tokens: list[int], parent: Any) -> None:
        """Make the KV that child `rid` with `tokens` shares with its parent last until it is used.

        `parent` is the running request; None = it does not run (any more).

        Raises:
            ValueError: `member.at` lies beyond the parent's tokens, or these differ.
        """
        tree, name = str(member.tree), str(member.parent)
        claim = self._claim(tree)
        finished = claim.finished.get(name)
        if parent is not None:
            whole: Any = parent.origin_input_ids + parent.output_ids
        elif finished is not None:
            whole = finished.tokens
        else:
            return
        _check(member, tokens, whole)
        usable = min(member.at, len(tokens) - 1)
        if parent is not None and parent.kv.req_pool_idx is not None:
            if not self._publishes_running:
                return
            usable = min(usable, parent.kv.kv_committed_len)
            start = self._publish(claim, parent, usable)
            row = self._cache.req_to_token_pool.req_to_token[parent.kv.req_pool_idx]
        elif finished is not None:
            start, row = usable // self._pages.size * self._pages.size, finished.slots
        else:
            return
        if usable == start or not self._pages.copies:
            return
        if start < len(row):
            source = int(row[start]) // self._pages.size
        elif finished is not None and finished.tail is not None:
            usable = min(usable, start + finished.tail.used)
            source = int(finished.tail.page[0]) // self._pages.size
        else:
            return
        if (tail := self._pages.copy(source, start, usable - start)) is not None:
            claim.waiting[rid] = tail

    def finish(self, req: Any) -> None:
        """Claim the KV of a member that is about to give its row back."""
        length = min(req.kv.kv_committed_len, len(req.origin_input_ids) + len(req.output_ids))
        claim = self._claim(str(req.spark.tree))
        start = self._publish(claim, req, length)
        row = self._cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        tail = None
        if length > start and self._pages.copies:
            tail = self._pages.copy(int(row[start]) // self._pages.size, start, length - start)
        tokens = req.origin_input_ids + req.output_ids
        claim.finished[req.rid] = Finished(tokens, row[:start].clone(), tail)

    def attach(self, req: Any) -> None:
        """Add the page copied for `req` to its prefix, where that ends at the page."""
        tail = self._waiting(req)
        # an earlier look-up's page may have been given back since
        req.spark_tail = None
        if tail is not None:
            # one that is to be aborted has been given another prompt
            stays = getattr(req, "to_finish", None) is None
            tail.attached = stays and versions.prefix_length(req) == tail.start
            req.spark_tail = tail
            if tail.attached:
                versions.lengthen_prefix(req, tail.slots)

    def settle(self, req: Any) -> None:
        """The row of `req` is written: what it took is its own now, what it did not goes back."""
        tail = self._waiting(req)
        if tail is not None:
            del self._trees[req.spark.tree].waiting[req.rid]
            req.spark_tail = None
            if not tail.attached:
                self._pages.free(tail)

    def forsake(self, queued: Iterable[Any]) -> None:
        """Free the pages of children that were aborted before their prefill: not among `queued`."""
        waiting = [(claim, rid) for claim in self._trees.values() for rid in claim.waiting]
        if waiting:
            alive = {req.rid for req in queued}
            for claim, rid in waiting:
                if rid not in alive:
                    self._pages.free(claim.waiting.pop(rid))

    def release(self, tree: str) -> None:
        """Drop all that `tree` claims, and forget it."""
        self.known.pop(tree, None)
        self._drop(tree)

    def yield_oldest(self) -> bool:
        """Drop the claims of the tree used longest ago; False = there is none left.

        Its forks recompute from then on what the radix tree evicts.
        """
        tree = next(iter(self._trees), None)
        if tree is not None:
            self._drop(tree)
        return tree is not None

    def forget(self) -> None:
        """Forget all claims without giving them back: pool and radix tree were reset."""
        self._trees.clear()

    def _claim(self, tree: str) -> Claim:
        claim = self._trees.pop(tree, None) or Claim()
        self._trees[tree] = claim
        return claim

    def _publish(self, claim: Claim, req: Any, length: int) -> int:
        """Publish the whole pages of the first `length` tokens, lock them, return their tokens."""
        start = length // self._pages.size * self._pages.size
        if start > req.kv.cache_protected_len:
            versions.publish(self._cache, req, start)
        if req.kv.cache_protected_len:
            claim.unlocks.append(versions.lock(self._cache, req))
        return start

    def _waiting(self, req: Any) -> Tail | None:
        member = getattr(req, "spark", None)
        claim = self._trees.get(member.tree) if member is not None else None
        return None if claim is None else claim.waiting.get(req.rid)

    def _drop(self, tree: str) -> None:
        claim = self._trees.pop(tree, None)
        if claim is None:
            return
        for unlock in claim.unlocks:
            unlock()
        for tail in (*claim.waiting.values(), *(f.tail for f in claim.finished.values())):
            if tail is not None:
                self._pages.free(tail)


def _check(member: Member, tokens: list[int], whole: Any) -> None:
    if member.at > len(whole):
        raise ValueError(
            f"spark.at={member.at} is beyond the {len(whole)} tokens of parent {member.parent!r}"
        )
    if list(whole[: member.at]) != tokens[: member.at]:
        raise ValueError(f"the first spark.at={member.at} tokens differ from the parent's")
