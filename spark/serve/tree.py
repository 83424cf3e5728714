"""The coordinator of one request: starts the roots, watches every token, forks while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from heapq import heappop, heappush

from spark.branching.base import State
from spark.branching.budgets import TreeBudget
from spark.core import Node, Watch
from spark.engines.base import EngineError
from spark.engines.text import Matcher, TokenBytes
from spark.seeds import derive_seed
from spark.serve.backend import Backend, Delta, LeafRequest
from spark.serve.leaf import Cost, Event, Leaf, Wish, leaf_id
from spark.serve.metrics import Metrics
from spark.serve.nodes import ServedNode
from spark.serve.plan import Plan


class TreeRun:
    """Runs one request; iterate over `events` once, then look at `leaves`.

    Which states branch depends on the plan alone: wishes are granted in the order of their places,
    each once no running leaf can still have an earlier one. The parent does not wait: forking
    behind it is as cheap as at its tip.
    """

    def __init__(
        self, name: str, plan: Plan, backend: Backend, text: TokenBytes, metrics: Metrics
    ) -> None:
        """`name` is unique; the leaves' ids start with it."""
        self.plan = plan
        self.cost = Cost(prompt=len(plan.tokens) - (plan.shared or 0))
        self.leaves: list[Leaf] = []
        self.nodes: list[ServedNode] = []
        """What the request added to the tree; known when all leaves have ended."""
        self.weight_version = 0
        self._backend, self._text, self._metrics = backend, text, metrics
        self._budget = TreeBudget(leaves=plan.n, roots=plan.roots)
        self._watch = plan.pause or plan.rule.watch or Watch()
        self._running: list[Leaf] = []
        self._wishes: list[Wish] = []
        self._queue: asyncio.Queue[tuple[Leaf, Delta | Exception]] = asyncio.Queue()
        self._tasks: dict[Leaf, asyncio.Task[None]] = {}
        self._name = name
        for root in range(plan.roots):
            self._born((root,), plan)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens until all leaves have ended. Raises what the backend raises."""
        first, *others = self.leaves
        self._start(first, self.plan.source, self.plan.shared)
        yield Event(leaf=first)
        while self._running:
            leaf, delta = await self._queue.get()
            if isinstance(delta, Exception):
                raise delta
            if leaf.finish_reason is not None:
                # what an engine sampled behind a pause
                continue
            if leaf is first and others:
                # the prompt is computed now: the other roots share it
                for root in others:
                    self._start(root, first.id, len(self.plan.tokens))
                    yield Event(leaf=root)
                others = []
            if self.plan.prefill:
                delta = delta.first(0, "length")
            if self.plan.pause is not None:
                delta = self._cut(leaf, delta)
            self._grow(leaf, delta)
            yield Event(leaf=leaf, delta=delta)
            for child in self._settle():
                yield Event(leaf=child)

    async def close(self) -> None:
        """Stop what still runs: the client has gone, or a leaf failed."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._running:
            await self._backend.abort([leaf.id for leaf in self._running])

    def fail(self, error: Exception) -> None:
        """Let `events` raise `error`."""
        self._queue.put_nowait((self.leaves[0], error))

    def _born(self, lineage: tuple[int, ...], plan: Plan, fork: Wish | None = None) -> Leaf:
        """Return a new leaf: a root, or a child of `fork` whose parent was split there."""
        if fork is None:
            tokens, place, above = list(plan.tokens), len(plan.tokens), plan.parent
        else:
            tokens, place = fork.leaf.tokens[: fork.fork_at], fork.place
            parent = fork.leaf.node.parent
            assert parent is not None
            above = parent
        identity = leaf_id(self._name, len(self.leaves))
        recent = reversed(tokens[plan.output_start :])
        leaf = Leaf(
            id=identity,
            index=len(self.leaves),
            lineage=lineage,
            tokens=tokens,
            node=ServedNode(Node(parent=None), above, len(tokens), identity),
            inherited=len(tokens) - len(plan.tokens),
            tags=Matcher(self._watch.tags, self._text, recent) if self._watch.tags else None,
            place=place,
        )
        self.leaves.append(leaf)
        self._running.append(leaf)
        return leaf

    def _start(self, leaf: Leaf, source: str | None, shared: int | None) -> None:
        """Let `leaf` run in the engine."""
        params, constrain = self.plan.params, self.plan.constrain
        output = leaf.tokens[len(self.plan.tokens) :]
        root = leaf.lineage == (0,)
        request = LeafRequest(
            id=leaf.id,
            tokens=list(leaf.tokens),
            prompt_length=self.plan.output_start,
            params=replace(
                params,
                max_tokens=1 if self.plan.prefill else params.max_tokens - leaf.inherited,
                watch=self.plan.pause,
                seed=params.seed if root else derive_seed("leaf", params.seed, leaf.lineage),
                constraint=None if constrain is None else constrain(output),
            ),
            options=self.plan.options,
            parent=source,
            fork_at=shared,
        )
        self._tasks[leaf] = asyncio.create_task(self._pump(leaf, request))

    async def _pump(self, leaf: Leaf, request: LeafRequest) -> None:
        """Put a leaf's deltas, or what went wrong, into the queue."""
        last = None
        try:
            async for delta in self._backend.generate(request):
                last = delta.finish_reason
                self._queue.put_nowait((leaf, delta))
            if last is None:
                raise RuntimeError(f"the engine ended {leaf.id} without a finish reason")
        except Exception as error:
            # whoever waits for the queue must learn of it
            self._queue.put_nowait((leaf, error))
        except asyncio.CancelledError:
            if not self._tasks[leaf].cancelling():
                # nobody here wanted it: an engine that dies or aborts cancels what is under way
                stopped = EngineError(f"{leaf.id} was stopped in the engine")
                self._queue.put_nowait((leaf, stopped))
            raise

    def _grow(self, leaf: Leaf, delta: Delta) -> None:
        """Take in new tokens: node, accounts, and whether the rule may want to branch."""
        leaf.node.grow(delta)
        self.weight_version = delta.weight_version
        self.cost.generated += len(delta.tokens)
        self._metrics.generated(len(delta.tokens))
        if delta.fork is not None:
            self.cost.recomputed += delta.fork.recomputed
            waited = time.monotonic() - leaf.forked_at if leaf.forked_at else None
            self._metrics.forked(delta.fork, waited)
        if delta.finish_reason is not None:
            leaf.finish_reason = leaf.node.stop = delta.finish_reason
            self._running.remove(leaf)
            if self.plan.prefill:
                # nothing hangs on the tokens that were computed
                leaf.node = self.plan.parent
        for offset, (token, entropy) in enumerate(zip(delta.tokens, delta.entropies, strict=True)):
            leaf.tokens.append(token)
            self._metrics.entropy(entropy)
            if self.plan.pause is None:
                last = offset == len(delta.tokens) - 1
                self._look(leaf, token, entropy, ended=last and leaf.finish_reason is not None)

    def _cut(self, leaf: Leaf, delta: Delta) -> Delta:
        """Return `delta` up to the token behind which the client wants a pause, if any."""
        last = len(delta.tokens) - 1
        for offset, (token, entropy) in enumerate(zip(delta.tokens, delta.entropies, strict=True)):
            trigger = self._trigger(leaf, token, entropy)
            ended = offset == last and delta.finish_reason not in (None, "trigger")
            if trigger is not None and not ended:
                leaf.node.node.trigger = trigger
                self._tasks[leaf].cancel()
                return delta.first(offset + 1, "trigger")
        return delta

    def _look(self, leaf: Leaf, token: int, entropy: float, ended: bool) -> None:
        """Note a wish where the token just added fits the rule's trigger."""
        trigger = self._trigger(leaf, token, entropy)
        fresh = len(leaf.tokens) > leaf.place
        leaf.place = max(leaf.place, len(leaf.tokens))
        # what has ended does not branch, nor does a token that was drawn again at a fork
        if trigger is None or ended or not fresh:
            return
        if self._budget.available(turn=0, lineage=leaf.lineage) == 0:
            self._metrics.rejected("budget")
            return
        # behind a tag something else may follow; an unsure token itself is drawn again
        fork_at = leaf.place - 1 if trigger == "entropy" else leaf.place
        heappush(self._wishes, Wish(leaf.place, leaf.lineage, leaf, fork_at, trigger))

    def _trigger(self, leaf: Leaf, token: int, entropy: float) -> str | None:
        """Return the tag that `token` completes, "entropy" where it was unsure, else None."""
        tag = leaf.tags.feed(token) if leaf.tags else None
        above = self._watch.entropy_above
        return "entropy" if tag is None and above is not None and entropy > above else tag

    def _settle(self) -> list[Leaf]:
        """Grant the wishes that nobody can come before any more; return the children."""
        children: list[Leaf] = []
        while self._wishes and all(leaf.place >= self._wishes[0].place for leaf in self._running):
            children += self._branch(heappop(self._wishes))
        return children

    def _branch(self, wish: Wish) -> list[Leaf]:
        """Ask the rule and the budget; the parent goes on as child 0."""
        leaf, plan = wish.leaf, self.plan
        # a tag may have been opened by an earlier request
        start = plan.output_start
        decision = plan.rule.decide(
            State(
                text=str(self._backend.tokenizer.decode(leaf.tokens[start : wish.place])),
                entropies=[],
                turn=0,
                horizon=1,
                lineage=leaf.lineage,
                seed=plan.params.seed,
                sample_trigger=wish.trigger,
            )
        )
        if decision.width < 2:
            return []
        if plan.max_depth is not None and leaf.depth >= plan.max_depth:
            self._metrics.rejected("depth")
            return []
        granted = self._budget.grant(decision.width - 1, turn=0, lineage=leaf.lineage)
        if granted < decision.width - 1:
            self._metrics.rejected("budget")
        if granted == 0:
            return []
        offset = wish.fork_at - leaf.node.start
        if offset > 0:
            leaf.node.split(offset)
        assert leaf.node.parent is not None
        leaf.node.parent.node.trigger = decision.trigger
        parent_lineage = leaf.lineage
        leaf.lineage = (*parent_lineage, 0)
        children = [self._born((*parent_lineage, k), plan, wish) for k in range(1, granted + 1)]
        for child in children:
            child.forked_at = time.monotonic()
            self.cost.shared += child.inherited
            self._metrics.reused(child.inherited)
            self._start(child, leaf.id, wish.fork_at)
        return children
