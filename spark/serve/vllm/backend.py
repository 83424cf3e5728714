"""vLLM's asynchronous engine behind the port."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm import exceptions
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.inputs.engine import tokens_input

from spark.engines.base import EngineError
from spark.engines.text import Matcher, TokenBytes
from spark.engines.vllm.plugin import NAME
from spark.engines.vllm.scores import TokenScores
from spark.serve.backend import Delta, Fork, LeafRequest
from spark.serve.protocol import RequestError
from spark.serve.vllm.params import OPTIONS, vllm_params
from spark.serve.weights import Shapes

# what vLLM raises for a request that it does not take; in older releases a ValueError, as ours
REFUSALS = (exceptions.VLLMClientError,) if hasattr(exceptions, "VLLMClientError") else ()


class VLLMBackend:
    """One AsyncLLM; a leaf is one of its requests, whose KV is held until the tree is released."""

    name = "vllm"
    options = OPTIONS

    def __init__(
        self, engine: Any, tokenizer: PreTrainedTokenizerBase, model: str, ends: tuple[int, ...]
    ) -> None:
        """`ends`: tokens that end a text; `model`: the name to serve it by."""
        self.engine, self.tokenizer, self.model, self.eos_token_ids = engine, tokenizer, model, ends
        config = engine.vllm_config
        self.context = int(config.model_config.max_model_len)
        self.vocab_size = int(config.model_config.get_vocab_size())
        # with a reasoning parser vLLM applies grammars to a part of the text only
        self.constrains = not config.structured_outputs_config.reasoning_parser
        self.weight_version = 0
        self.aliases: tuple[str, ...] = ()
        """Set by the server."""
        self.shapes = Shapes(config.model_config.hf_config)
        ranks = config.parallel_config
        # of a balancer outside, only the ranks of this server
        self._ranks = (
            ranks.data_parallel_size_local if ranks.local_engines_only else ranks.data_parallel_size
        )
        self._text = TokenBytes(tokenizer)
        self._counts: Counter[str] = Counter()
        self._trees: dict[str, int] = {}

    @classmethod
    def of(cls, engine: Any, model: str) -> VLLMBackend:
        """Return the backend of an AsyncLLM, with the tokenizer that vLLM was told to use."""
        config = engine.vllm_config.model_config
        tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer,
            revision=config.tokenizer_revision,
            trust_remote_code=config.trust_remote_code,
        )
        return cls(engine, tokenizer, model, ends(config, tokenizer))

    @property
    def failure(self) -> str | None:
        """Why the engine answers nothing any more."""
        return str(self.engine.dead_error) if self.engine.errored else None

    async def generate(self, request: LeafRequest) -> AsyncGenerator[Delta, None]:
        """Stream the tokens of one leaf; see `spark.serve.backend.Backend.generate`."""
        try:
            async with aclosing(self._stream(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except REFUSALS as error:
            param = getattr(error, "parameter", None)
            raise RequestError(str(error), param=param) from error

    async def _stream(self, request: LeafRequest) -> AsyncGenerator[Delta, None]:
        params, version = request.params, self.weight_version
        room = self.context - len(request.tokens)
        if room <= 0:
            yield Delta(finish_reason="context", weight_version=version)
            return
        # vLLM's processes take no number beyond 64 bits
        most = replace(params, max_tokens=min(params.max_tokens, room))
        settings = vllm_params(replace(request, params=most))
        recent = list(reversed(request.tokens[request.prompt_length :]))
        stop = Matcher(params.stop, self._text, recent) if params.stop else None
        taken: list[int] = []
        prompt = tokens_input(list(request.tokens))
        rank = self._rank(request.id)
        streamed = self.engine.generate(prompt, settings, request.id, data_parallel_rank=rank)
        async with aclosing(streamed) as outputs:
            async for output in outputs:
                (completion,) = output.outputs
                delta = self._delta(completion, request, taken, stop)
                version = delta.weight_version = version_of(completion, version)
                self._count(request, delta, first=not taken)
                taken += delta.tokens
                if delta.finish_reason == "length" and len(taken) == room < params.max_tokens:
                    delta.finish_reason = "context"
                yield delta
                if delta.finish_reason is not None:
                    return

    async def abort(self, ids: Iterable[str]) -> None:
        """Stop leaves that run; what they computed stays held."""
        await self.engine.abort(list(ids))

    async def release(self, ids: Iterable[str]) -> None:
        """Let the engine forget a whole tree."""
        names = list(ids)
        await self.abort(names)
        for name in names:
            self._trees.pop(tree_of(name), None)
        await release(self.engine.engine_core, names)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Wait for the requests in progress; those that come meanwhile begin when it is left.

        Since 0.33 vLLM's own `pause_generation` refuses these: trees that go on would fail.
        """
        try:
            await self.engine.engine_core.pause_scheduler_async(mode="wait", clear_cache=False)
            # as vLLM does behind it: the last outputs reach those who wait for them
            await asyncio.sleep(0.02)
            yield
        finally:
            await self.engine.resume_generation()

    async def update_weights(self, folder: str, version: int) -> None:
        """Load the safetensors in `folder` and drop all KV, while it is `paused`.

        Raises ValueError where weights come another way than out of a folder.
        """
        way = self.engine.vllm_config.weight_transfer_config.backend
        if way != NAME:
            raise ValueError(
                f"--weight-transfer-config names {way}: send weights by vLLM's own calls for it, "
                "or leave the flag out"
            )
        await self.engine.start_weight_update()
        await self.engine.update_weights(WeightTransferUpdateRequest({"folder": folder}))
        await self.engine.finish_weight_update()
        if not await self.engine.reset_prefix_cache():
            raise EngineError("KV of the old weights is still in use")
        set_version = getattr(self.engine, "update_weight_version", None)
        if set_version is not None:
            await set_version(str(version))
        self.weight_version = version

    def stats(self) -> Mapping[str, int]:
        """Return what this server's requests cost; see `spark.engines.base.Engine.stats`."""
        names = ("generated", "prefilled", "reused", "recomputed", "forks")
        paths = ("exact", "cache", "recompute")
        told = {name: self._counts[name] for name in names}
        return told | {f"forks_{path}": self._counts[f"forks_{path}"] for path in paths}

    def _rank(self, leaf: str) -> int | None:
        """Return the data-parallel rank of the leaf's tree: children go where their parent is."""
        if self._ranks == 1:
            return None
        taken = Counter(self._trees.values())
        fewest = min(range(self._ranks), key=lambda rank: taken[rank])
        return self._trees.setdefault(tree_of(leaf), fewest)

    def _delta(
        self, completion: Any, request: LeafRequest, taken: list[int], stop: Matcher | None
    ) -> Delta:
        """Return vLLM's new tokens, cut behind a stop string."""
        params = request.params
        least = request.options.get("min_tokens", 0)
        before = len(request.tokens) - request.prompt_length
        scores: TokenScores = completion.spark or TokenScores()
        tokens, finish = list(completion.token_ids), completion.finish_reason
        if any(map(math.isnan, scores.entropies)):
            at = len(taken) + [*map(math.isnan, scores.entropies)].index(True)
            raise EngineError(f"the logits of new token {at} were not finite: check the weights")
        if finish == "error" and completion.stop_reason:
            raise RequestError(completion.stop_reason, param="structured_outputs")
        if finish not in (None, "stop", "length"):
            raise EngineError(f"vLLM ended the request with {finish!r}")
        for at, token in enumerate(tokens):
            ended = stop is not None and stop.feed(token) is not None
            # as vLLM has it: strings are looked for behind the least number of tokens
            if ended and before + len(taken) + at + 1 > least:
                del tokens[at + 1 :]
                finish = "stop"
                break
        kept = len(tokens)
        delta = Delta(
            tokens=tokens,
            logprobs=scores.logprobs[:kept],
            entropies=scores.entropies[:kept],
            log_kept_mass=scores.log_kept_mass[:kept],
            finish_reason=finish,
        )
        if scores.fork_path is not None:
            # the scheduler says one of the three paths
            delta.fork = Fork(path=scores.fork_path, recomputed=scores.recomputed)  # type: ignore[arg-type]
        if params.constraint is not None:
            for at in range(kept):
                ids = params.constraint.allowed([*taken, *tokens[:at]])
                if ids is not None:
                    delta.allowed[at] = list(ids)
        return delta

    def _count(self, request: LeafRequest, delta: Delta, first: bool) -> None:
        counts = self._counts
        counts["generated"] += len(delta.tokens)
        if first:
            counts["prefilled"] += len(request.tokens) - (request.fork_at or 0)
        if delta.fork is not None:
            counts["forks"] += 1
            counts[f"forks_{delta.fork.path}"] += 1
            counts["recomputed"] += delta.fork.recomputed
            counts["reused"] += max(0, (request.fork_at or 0) - request.prompt_length)


def version_of(completion: Any, otherwise: int) -> int:
    """Return the number that vLLM, where it has one, gives the weights of the newest tokens.

    Whoever replaces weights by vLLM's own calls numbers them there.
    """
    spans = getattr(completion, "weight_versions", None)
    newest = spans[-1].version if spans else ""
    return int(newest) if newest.isdecimal() else otherwise


def ends(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a text, by the model's generation config and the tokenizer."""
    told = config.try_get_generation_config().get("eos_token_id")
    found = [told] if isinstance(told, int) else list(told or ())
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(found))


def tree_of(leaf: str) -> str:
    """Return the part of a leaf's id that all leaves of its tree share."""
    return leaf.partition("/")[0]


async def release(core: Any, names: list[str]) -> None:
    """Let the scheduler of every data-parallel rank drop what is held under `names`.

    vLLM forwards the ids of requests it does not know only by this, lower, way.
    """
    engines = getattr(core, "core_engines", None)
    if hasattr(core, "_abort_requests") and engines:
        await asyncio.gather(*(core._abort_requests(names, engine) for engine in engines))
    else:
        await core.abort_requests_async(names)
