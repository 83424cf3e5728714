"""Forks inside vLLM's scheduler: a child is admitted with its parent's own blocks.

vLLM (>= 0.26) can already start a request from a prefix that ends inside a block: it takes a
reference on every block of the prefix, gives the request a private copy of the last one and has
the worker copy it before the forward. Stock, only hybrid models get such prefixes. Here
`KVCacheManager.get_computed_blocks` names the parent's blocks as the prefix of a child.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import RequestStatus

from spark.engines.vllm.branch import Branch, branch_of
from spark.engines.vllm.grammars import advance
from spark.engines.vllm.held import Held, Source

Path = Literal["exact", "cache", "recompute"]
"""Where a child's shared tokens came from: the parent's blocks, the prefix cache, the model."""
Admission = tuple[Path, int]
"""How a child was admitted, and how many of its shared tokens were computed again."""


class Forks:
    """Who may be forked, and what became of every fork; one per scheduler."""

    def __init__(self, scheduler: Any, hold_seconds: float) -> None:
        """Hook into `scheduler`'s KV cache manager."""
        self._scheduler = scheduler
        self._manager = scheduler.kv_cache_manager
        self.held = Held(self._manager.block_pool, hold_seconds)
        self.counts: Counter[Path] = Counter()
        self.recomputed = 0
        self._branches: dict[str, Branch] = {}
        self._alive: dict[str, str] = {}
        self._admitted: dict[str, Admission] = {}
        self._refused: dict[str, str] = {}
        self._find = self._manager.get_computed_blocks
        self._allocate = self._manager.allocate_slots
        self._manager.get_computed_blocks = self._computed_blocks
        self._manager.allocate_slots = self._allocate_slots

    def add(self, request: Any) -> None:
        """Take note of a new request; tokens sampled by its ancestors become its output."""
        branch = branch_of(request.sampling_params)
        if branch is None:
            return
        self._branches[request.request_id] = branch
        if branch.name is not None:
            self._alive[branch.name] = request.request_id
        if branch.prompt_length is not None and branch.prompt_length < request.num_tokens:
            self._count_as_output(request, branch.prompt_length)
            if request.structured_output_request is not None and branch.constraint is None:
                # a constraint has been told what came before
                manager = self._scheduler.structured_output_manager
                advance(manager, request, branch.prompt_length)

    def finish(self, request: Any) -> None:
        """Forget `request`, whose blocks are about to be freed; hold them if it asked for that."""
        branch = self._branches.pop(request.request_id, None)
        self._admitted.pop(request.request_id, None)
        if branch is None:
            return
        if isinstance(fault := _grammar_of(request), Exception):
            self._refused[request.request_id] = str(fault)
        if branch.name is None:
            return
        if self._alive.get(branch.name) == request.request_id:
            del self._alive[branch.name]
        if branch.hold and (source := self._source_of(request)) is not None:
            self.held.hold(branch.name, source)

    def release(self, names: Iterable[str]) -> None:
        """Drop the KV held under `names`; a live request of that name will not be held either."""
        for name in names:
            self.held.release(name)
            if (running := self._alive.pop(name, None)) is not None:
                self._branches.pop(running, None)

    def scored(self, request_ids: Iterable[str]) -> dict[str, Admission | None]:
        """Return those requests that asked for scores, with how they were admitted, if not told."""
        branches = self._branches
        return {
            request_id: self._admitted.get(request_id)
            for request_id in (request_ids if branches else ())
            if request_id in branches and branches[request_id].scores
        }

    def told(self, request_id: str, admission: Admission | None) -> None:
        """Count a child whose admission is reported with its first token."""
        if admission is not None:
            self._admitted.pop(request_id, None)
            self.counts[admission[0]] += 1
            self.recomputed += admission[1]

    def refused(self) -> dict[str, str]:
        """Return the requests that have failed for their grammar since last asked, and why."""
        told, self._refused = self._refused, {}
        return told

    def _count_as_output(self, request: Any, prompt_length: int) -> None:
        request._output_token_ids.extend(request._all_token_ids[prompt_length:])
        request.num_prompt_tokens = prompt_length
        if self._scheduler.use_v2_model_runner:
            # runner V1 splits on its own side, from the full prompt
            request.prompt_token_ids = request._all_token_ids[:prompt_length]
        # they assume that only prompt tokens can be cached
        request.prefill_stats = None

    def _computed_blocks(self, request: Any, *args: Any, **kwargs: Any) -> tuple[Any, int, Any]:
        """Replace `KVCacheManager.get_computed_blocks`."""
        branch = self._branches.get(request.request_id)
        if branch is None or branch.parent is None:
            return self._find(request, *args, **kwargs)
        path: Path = "exact"
        found = None if request.num_preemptions else self._shared_blocks(request, branch)
        if found is None:
            found = self._find(request, *args, **kwargs)
            path = "cache" if found[1] else "recompute"
        if not request.num_preemptions:
            self._admitted[request.request_id] = path, max(0, branch.fork_at - found[1])
        return found

    def _shared_blocks(self, request: Any, branch: Branch) -> tuple[Any, int, Any] | None:
        """Return the parent's blocks as a prefix of `request`; None = not possible."""
        assert branch.parent is not None
        source = self._find_source(branch.parent)
        if source is None or not self._manager.prefix_cache_lookup_enabled(request):
            return None
        # the last token is always computed: its logits are needed
        shared = min(branch.fork_at, source.written, request.num_tokens - 1)
        if shared < 1 or request._all_token_ids[:shared] != source.tokens[:shared]:
            return None
        if request.lora_request != source.lora or request.cache_salt != source.salt:
            return None
        size = self._single_manager().block_size
        blocks = source.blocks[: -(-shared // size)]
        if len(blocks) * size < shared or any(block.is_null for block in blocks):
            return None
        return self._manager.create_kv_cache_blocks((blocks,)), shared, 0

    def _find_source(self, name: str) -> Source | None:
        running = self._scheduler.requests.get(self._alive.get(name))
        if running is None:
            return self.held.get(name)
        # what waits may have blocks that a KV connector has yet to fill
        return self._source_of(running) if running.status == RequestStatus.RUNNING else None

    def _source_of(self, request: Any) -> Source | None:
        """Return the KV that `request` has; None where it cannot be shared block by block."""
        manager = self._single_manager()
        blocks = manager.req_to_blocks.get(request.request_id) if manager else None
        if not blocks:
            return None
        tokens = request._all_token_ids
        return Source(
            # a running parent's list grows; the children look at its beginning only
            tokens=tokens,
            written=min(request.num_computed_tokens, len(tokens)),
            blocks=list(blocks),
            lora=request.lora_request,
            salt=request.cache_salt,
        )

    def _single_manager(self) -> Any:
        """Return the manager of the only KV cache group; None where it is not full attention.

        A recurrent state is that of the newest token: a fork behind it would share a later one.
        """
        managers = self._manager.coordinator.single_type_managers
        full = len(managers) == 1 and isinstance(managers[0], FullAttentionManager)
        return managers[0] if full else None

    def _allocate_slots(self, *args: Any, **kwargs: Any) -> Any:
        """Replace `KVCacheManager.allocate_slots`: live requests come before held parents."""
        blocks = self._allocate(*args, **kwargs)
        while blocks is None and self.held.drop_oldest():
            blocks = self._allocate(*args, **kwargs)
        return blocks


def _grammar_of(request: Any) -> Any:
    """Return the compiled grammar of a request, or what went wrong with it; None without one."""
    state = request.structured_output_request
    return None if state is None else state.grammar
