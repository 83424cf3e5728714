"""Sequences on the trees of a Spark server, wherever it is and whatever runs the model there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

from spark.engines.base import ContextError, EngineError, Sample, SamplingParams
from spark.engines.weights import State
from spark.engines.wire import Refused, Server, request_fields

SERVER_COUNTERS = ("blocks_in_use", "blocks_copied", "preemptions")
"""Counters that only the server knows."""


@dataclass(slots=True, eq=False)
class Remote:
    """A tree on the server; it is deleted when the last sequence on it is released."""

    id: str
    live: int = 1


@dataclass(kw_only=True, slots=True, eq=False)
class Held:
    """What the client knows of a sequence."""

    tokens: list[int]
    sampled: bytearray
    """1 where the policy sampled the token."""
    remote: Remote
    node: int
    """Of the server's tree; the path to it has the first `known` tokens."""
    known: int
    busy: bool = False


class ServedEngine:
    """The engine protocol against a Spark server; see `spark.engines.base.Engine`.

    A sequence is a leaf of a tree on the server: `sample` continues it there with the new tokens
    only, `fork` costs no request. Where the server has dropped the tree (idle for too long, new
    weights), the sequence is sent whole again, and its tokens are counted as recomputed.
    """

    def __init__(self, server: Server) -> None:
        """Nothing is sent before the first call."""
        self._server = server
        self._held: dict[int, Held] = {}
        self._ids = count()
        own = ("generated", "prefilled", "reused", "recomputed", "forks")
        self._counters = dict.fromkeys(own, 0)
        self._server_stats: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release every sequence and close the connections."""
        try:
            for seq in [seq for seq, held in self._held.items() if not held.busy]:
                await self.release(seq)
        except EngineError:
            # it has gone, and its trees with it: whoever used it has been told
            pass
        finally:
            await self._server.close()

    async def open(self, tokens: Sequence[int]) -> int:
        """Prefill `tokens` on the server and return a handle.

        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than fit.
            EngineError: the server failed, or could not be reached in time.
        """
        if not tokens:
            raise ValueError("tokens is empty: a sequence starts with at least one token")
        await self._check("prompt", tokens, 0)
        held = await self._begin(list(tokens), bytearray(len(tokens)))
        seq = next(self._ids)
        self._held[seq] = held
        return seq

    async def extend(self, seq: int, tokens: Sequence[int]) -> None:
        """Append environment tokens to `seq`; they are sent with the next sample.

        Raises:
            ValueError: the sequence is unknown or busy, or the tokens do not fit.
        """
        held = self._idle(seq)
        await self._check("extension", tokens, len(held.tokens))
        held.tokens.extend(tokens)
        held.sampled.extend(bytes(len(tokens)))

    async def fork(self, seq: int, n: int, at: int | None = None) -> list[int]:
        """Return `n` children that share the first `at` tokens (default: all).

        The server forks when they are sampled; tokens that it has not seen yet are sent now, so
        that they are computed once for all.

        Raises:
            ValueError: the sequence is unknown or busy, `n` < 1, or `at` outside [1, length].
        """
        held = self._idle(seq)
        length = len(held.tokens) if at is None else at
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if not 1 <= length <= len(held.tokens):
            raise ValueError(f"at must be in [1, {len(held.tokens)}], got {at}")
        if length > held.known:
            await self._send(held)
        children = [next(self._ids) for _ in range(n)]
        for child in children:
            self._held[child] = Held(
                tokens=held.tokens[:length],
                sampled=held.sampled[:length],
                remote=held.remote,
                node=held.node,
                known=min(held.known, length),
            )
        held.remote.live += n
        self._counters["forks"] += n
        self._counters["reused"] += n * held.sampled.count(1, 0, length)
        return children

    async def sample(self, seq: int, params: SamplingParams) -> Sample:
        """Sample a continuation; the sampled tokens are appended to `seq`.

        A cancelled call stops the generation and leaves the sequence as it was.

        Raises:
            ValueError: the sequence is unknown or busy, or the server cannot honour `params`.
            EngineError: the server failed, or could not be reached in time.
        """
        held = self._idle(seq)
        facts = await self._server.facts()
        if len(held.tokens) == facts["context"]:
            return Sample(finish_reason="context")
        return self._take(held, await self._continue(held, request_fields(params)))

    async def release(self, seq: int) -> None:
        """Drop `seq`; with the last sequence of a tree the server frees it."""
        held = self._idle(seq)
        del self._held[seq]
        await self._leave(held.remote)

    async def update_weights(self, state: State, version: int) -> None:
        """Load `state` into the server's model; trees of other clients are dropped there.

        Raises:
            ValueError: sequences are live, or the server does not take the weights.
        """
        if self._held:
            raise ValueError(
                f"{len(self._held)} sequences are live and hold KV of the old weights: release "
                "them before update_weights"
            )
        await self._publish(state, version)

    def length(self, seq: int) -> int:
        """Return the number of tokens of `seq`."""
        return len(self._known(seq).tokens)

    def stats(self) -> dict[str, int]:
        """Return the counters; those of blocks and preemptions are the server's, last heard."""
        heard = {name: self._server_stats.get(name, 0) for name in SERVER_COUNTERS}
        return {**self._counters, **heard}

    async def _publish(self, state: State, version: int) -> None:
        """Replace the weights, and drop all old KV; each engine has a way of its own."""
        raise NotImplementedError

    async def _begin(self, tokens: list[int], sampled: bytearray) -> Held:
        """Return a sequence on a new tree of the server."""
        answer = await self._ask({"prompt": tokens, "max_tokens": 0}, {"policy": "none"})
        tree = answer["branching"]
        held = Held(
            tokens=tokens, sampled=sampled, remote=Remote(tree["id"]), node=0, known=len(tokens)
        )
        held.node = tree["nodes"][-1]["id"]
        return held

    async def _send(self, held: Held) -> None:
        """Let the server compute the tokens that it does not know yet."""
        only = {"body": {"max_tokens": 0}, "branching": {"policy": "none"}}
        answer = await self._continue(held, only)
        # none are made where the whole sequence has just been sent again
        for node in answer["branching"]["nodes"]:
            held.node, held.known = node["id"], len(held.tokens)

    async def _continue(self, held: Held, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the server's answer to one continuation of `held`; no other call may come in."""
        held.busy = True
        try:
            while True:
                behind = {"tree": held.remote.id, "from": held.node, "fork_at": held.known}
                fields = {**asked["body"], "prompt": held.tokens[held.known :]}
                try:
                    return await self._ask(fields, {**behind, **asked["branching"]})
                except Refused as error:
                    if error.param != "branching.tree":
                        raise
                await self._again(held)
        finally:
            held.busy = False

    async def _again(self, held: Held) -> None:
        """Put `held`, whose tree the server has dropped, on a new one."""
        lost = held.known
        fresh = await self._begin(held.tokens, held.sampled)
        self._counters["prefilled"] -= lost
        self._counters["recomputed"] += lost
        await self._leave(held.remote)
        held.remote, held.node, held.known = fresh.remote, fresh.node, fresh.known

    async def _ask(self, fields: dict[str, Any], branching: dict[str, Any]) -> dict[str, Any]:
        answer = await self._server.complete({**fields, "branching": branching})
        tree = answer.get("branching")
        if not tree:
            raise ValueError(f"{self._server.url} ignores `branching`: it is no Spark server")
        self._server_stats = tree["engine"]
        self._counters["prefilled"] += tree["prompt_tokens"]
        self._counters["recomputed"] += tree["recomputed_tokens"]
        return answer

    def _take(self, held: Held, answer: dict[str, Any]) -> Sample:
        """Append what was sampled and return it."""
        tree = answer["branching"]
        node = tree["nodes"][-1]
        sample = Sample(
            tokens=node["token_ids"],
            logprobs=node.get("logprobs", []),
            entropies=node.get("entropies", []),
            log_kept_mass=node.get("log_kept_mass", []),
            allowed={int(at): ids for at, ids in node.get("allowed", {}).items()},
            finish_reason=node["stop"],
            trigger=node.get("trigger"),
            weight_version=tree["weight_version"],
        )
        held.tokens.extend(sample.tokens)
        held.sampled.extend(b"\1" * len(sample.tokens))
        held.node, held.known = node["id"], len(held.tokens)
        self._counters["generated"] += len(sample.tokens)
        return sample

    async def _leave(self, remote: Remote) -> None:
        remote.live -= 1
        if remote.live == 0:
            answer = await self._server.drop(remote.id)
            self._server_stats = answer.get("engine", self._server_stats)

    def _known(self, seq: int) -> Held:
        if seq not in self._held:
            raise ValueError(f"seq {seq} is unknown or was released")
        return self._held[seq]

    def _idle(self, seq: int) -> Held:
        held = self._known(seq)
        if held.busy:
            raise ValueError(f"seq {seq} is busy with another call: await that one first")
        return held

    async def _check(self, what: str, tokens: Sequence[int], before: int) -> None:
        facts = await self._server.facts()
        context, size = facts["context"], facts["vocab_size"]
        if before + len(tokens) > context:
            grown = f" after {before} tokens" if before else ""
            raise ContextError(
                f"{what} of {len(tokens)} tokens{grown} exceeds the model's context of {context}"
            )
        if tokens and not 0 <= min(tokens) <= max(tokens) < size:
            raise ValueError(
                f"{what} has a token id outside [0, {size}): {min(tokens)}..{max(tokens)}"
            )
