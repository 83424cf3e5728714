"""Answers in OpenAI's shapes, whole or in chunks, with the tree beside them."""

from __future__ import annotations

import time
from typing import Any

from spark.serve.leaf import Event, Leaf
from spark.serve.nodes import ServedTree
from spark.serve.openai import AnyBody, ChatBody
from spark.serve.protocol import Branching
from spark.serve.text import LeafText
from spark.serve.tree import TreeRun
from spark.serve.trees import Trees

FINISH = {"stop": "stop", "trigger": "stop", "length": "length", "context": "length"}
"""Spark's finish reasons as OpenAI's."""


class Answer:
    """Renders one request's run; `chunk` for streams, `whole` at the end of it."""

    def __init__(self, body: AnyBody, trees: Trees, tree: ServedTree, run: TreeRun) -> None:
        self._body, self._trees, self._tree, self._run = body, trees, tree, run
        self._chat = isinstance(body, ChatBody)
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{tree.id}"
        self._created = int(time.time())
        self._hidden = trees.special if body.skip_special_tokens else frozenset()
        # what was only computed has no choices
        self._leaves = [] if run.plan.prefill else run.leaves
        self._texts: dict[Leaf, LeafText] = {}

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is not streamed; the tree has its nodes by now."""
        choices = []
        for leaf in self._leaves:
            text = self._text_of(leaf)
            tokens = self._output(leaf)
            said = text.feed(tokens) + text.end()
            content = (
                {"message": {"role": "assistant", "content": said}}
                if self._chat
                else {"text": said}
            )
            logprobs = self._path_logprobs(leaf) if self._wants_logprobs else []
            choices.append(
                {
                    "index": leaf.index,
                    **content,
                    "finish_reason": FINISH[str(leaf.finish_reason)],
                    "logprobs": self._logprobs(tokens, logprobs),
                    **({"token_ids": tokens} if self._body.return_token_ids else {}),
                    **({"branch": self._branch(leaf)} if self._body.branching else {}),
                }
            )
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head(kind), "choices": choices, **self._tail()}

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """Return the chunks that `event` gives rise to; a new leaf begins with what it shares."""
        leaf, delta = event.leaf, event.delta
        if self._run.plan.prefill:
            return []
        if delta is None:
            return [self._birth(leaf)] if leaf.inherited else []
        fresh = leaf not in self._texts
        text = self._texts.setdefault(leaf, self._text_of(leaf))
        said = text.feed(delta.tokens)
        if delta.finish_reason is not None:
            said += text.end()
        extra = {
            "entropies": delta.entropies,
            "log_kept_mass": delta.log_kept_mass,
            "logprobs": delta.logprobs,
        }
        chunk = self._chunk(leaf, said, delta.tokens, delta.logprobs, extra, fresh)
        if delta.finish_reason is not None:
            chunk["choices"][0]["finish_reason"] = FINISH[delta.finish_reason]
        return [chunk]

    def last_chunks(self) -> list[dict[str, Any]]:
        """Return the chunks after the last token: the tree and the usage, where asked for."""
        options = self._body.stream_options
        tail = self._tail()
        if not (options and options.include_usage):
            del tail["usage"]
        return [{**self._head(self._chunk_kind), "choices": [], **tail}] if tail else []

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    @property
    def _wants_logprobs(self) -> bool:
        # 0 asks for them too, on /v1/completions
        return not (self._body.logprobs is None or self._body.logprobs is False)

    def _birth(self, leaf: Leaf) -> dict[str, Any]:
        """Return the first chunk of a forked leaf, so that its text is whole by itself."""
        text = self._texts[leaf] = self._text_of(leaf)
        shared = self._output(leaf)[: leaf.inherited]
        logprobs = self._path_logprobs(leaf) if self._wants_logprobs else []
        extra = {"shared_tokens": leaf.inherited, "lineage": list(leaf.lineage)}
        return self._chunk(leaf, text.feed(shared), shared, logprobs, extra, True)

    def _chunk(
        self,
        leaf: Leaf,
        said: str,
        tokens: list[int],
        logprobs: list[float],
        branch: dict[str, Any],
        first: bool,
    ) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        content: dict[str, Any] = (
            {"delta": {**role, "content": said}} if self._chat else {"text": said}
        )
        choice = {
            "index": leaf.index,
            **content,
            "finish_reason": None,
            "logprobs": self._logprobs(tokens, logprobs),
            **({"token_ids": tokens} if self._body.return_token_ids else {}),
            **({"branch": branch} if self._body.branching else {}),
        }
        return {**self._head(self._chunk_kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self._trees.backend.model
        return {"id": self._id, "object": kind, "created": self._created, "model": model}

    def _tail(self) -> dict[str, Any]:
        """Return the usage, each node billed once, and the `branching` object."""
        plan, cost = self._run.plan, self._run.cost
        usage = {
            "prompt_tokens": len(plan.tokens),
            "completion_tokens": cost.generated,
            "total_tokens": len(plan.tokens) + cost.generated,
            "prompt_tokens_details": {"cached_tokens": plan.shared or 0},
        }
        tail: dict[str, Any] = {"usage": usage}
        if self._body.return_token_ids:
            tail["prompt_token_ids"] = plan.tokens
        if self._body.branching:
            tail["branching"] = self._branching(self._body.branching)
        return tail

    def _branching(self, asked: Branching) -> dict[str, Any]:
        run, cost = self._run, self._run.cost
        told: dict[str, Any] = {
            "id": self._tree.id,
            "policy": asked.policy or self._tree.policy,
            "seed": run.plan.params.seed,
            "weight_version": run.weight_version,
            "leaves": [{"index": leaf.index, **self._branch(leaf)} for leaf in self._leaves],
            "prompt_tokens": cost.prompt,
            "generated_tokens": cost.generated,
            "shared_tokens": cost.shared,
            "recomputed_tokens": cost.recomputed,
            "engine": dict(self._trees.backend.stats()),
        }
        if asked.return_nodes:
            told["nodes"] = [node.describe() for node in run.nodes]
        return told

    def _branch(self, leaf: Leaf) -> dict[str, Any]:
        """Return where a leaf stands in the tree."""
        return {
            "node": leaf.node.id,
            "path": [node.id for node in leaf.node.path()],
            "weight": self._tree.weight(leaf.node),
            "lineage": list(leaf.lineage),
        }

    def _text_of(self, leaf: Leaf) -> LeafText:
        cut = () if self._body.include_stop_str_in_output else self._body.stop
        return LeafText(self._trees.text, hidden=self._hidden, cut=cut)

    def _output(self, leaf: Leaf) -> list[int]:
        return leaf.tokens[len(self._run.plan.tokens) :]

    def _path_logprobs(self, leaf: Leaf) -> list[float]:
        """Return the log-probabilities of the leaf's output so far."""
        values: list[float] = []
        begin = len(self._run.plan.tokens)
        for node in leaf.node.path():
            if node.start >= begin:
                values += node.node.logprobs
        return values

    def _logprobs(self, tokens: list[int], values: list[float]) -> dict[str, Any] | None:
        """Return tokens and log-probabilities in the route's shape; None where not asked for."""
        if not self._wants_logprobs:
            return None
        pieces = [self._trees.text[token] for token in tokens]
        names = [piece.decode("utf-8", "replace") for piece in pieces]
        if not self._chat:
            return {"tokens": names, "token_logprobs": values, "top_logprobs": None}
        entries = zip(names, values, pieces, strict=True)
        return {
            "content": [
                {"token": name, "logprob": value, "bytes": list(piece), "top_logprobs": []}
                for name, value, piece in entries
            ]
        }
