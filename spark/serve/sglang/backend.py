"""SGLang behind the port: leaves are requests of its tokenizer manager, in the server's process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spark.engines.base import FinishReason, SamplingParams, TokenConstraint
from spark.engines.sglang.fork import RELEASE
from spark.seeds import derive_seed
from spark.serve.backend import Delta, Fork, ForkPath, LeafRequest
from spark.serve.protocol import RequestError
from spark.serve.sglang.weights import Weights
from spark.serve.trees import FULL_RETRY_S

# fields of a request -> SGLang's sampling parameters
OPTIONS = {
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
    "logit_bias": "logit_bias",
    "regex": "regex",
    "ebnf": "ebnf",
    "json_schema": "json_schema",
}


class SGLangBackend:
    """One SGLang server, seen from its own HTTP process."""

    name = "sglang"
    options = frozenset(OPTIONS)
    aliases: tuple[str, ...] = ()
    constrains = True

    def __init__(self, manager: Any, limits: Mapping[str, Any]) -> None:
        """`manager` is SGLang's tokenizer manager, `limits` what its scheduler told of itself."""
        self._manager = manager
        self._args = manager.server_args
        self.model = str(self._args.served_model_name or self._args.model_path)
        self.tokenizer: PreTrainedTokenizerBase = manager.tokenizer
        self.vocab_size = int(manager.model_config.vocab_size)
        self.eos_token_ids = tuple(sorted(manager.model_config.hf_eos_token_id or ()))
        # SGLang keeps two positions of the context, and of the pool, for itself
        self.context = min(manager.context_len, int(limits["max_total_num_tokens"])) - 2
        self._weights = Weights(manager)
        self._running: set[str] = set()
        self._counts = {"generated": 0, "recomputed": 0, "forks": 0}

    @classmethod
    def of(cls, engine: Any) -> SGLangBackend:
        """Return the backend of a `sglang.Engine` of this process."""
        return cls(engine.tokenizer_manager, engine._scheduler_init_result.scheduler_infos[0])

    @property
    def failure(self) -> str | None:
        """Nothing: SGLang ends this process where its engine fails."""
        return None

    async def generate(self, request: LeafRequest) -> AsyncGenerator[Delta, None]:
        """Stream the tokens of one leaf; see `spark.serve.backend.Backend.generate`."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        left = self.context - len(request.tokens)
        if left < 1:
            yield Delta(finish_reason="context", fork=_free(request))
            return
        rid, output = _rid(request.id), list(request.tokens[request.prompt_length :])
        most = min(left, request.params.max_tokens)
        stream = GenerateReqInput(
            rid=rid,
            input_ids=list(request.tokens[: request.prompt_length]),
            sampling_params=sampling(request, output, most, self._native_stops(request.params)),
            stream=True,
            routed_dp_rank=self._rank(request.id),
        )
        self._running.add(rid)
        seen, finish = 0, None
        try:
            async for step in self._manager.generate_request(stream, None):
                delta = self._delta(request, step, seen)
                seen += len(delta.tokens)
                finish = delta.finish_reason
                if finish == "length" and most < request.params.max_tokens:
                    finish = delta.finish_reason = "context"
                yield delta
                if finish is not None:
                    return
        finally:
            self._running.discard(rid)
            if finish is None or seen < most:
                self._manager.abort_request(rid=rid)

    async def abort(self, ids: Iterable[str]) -> None:
        """Stop leaves that run."""
        for rid in map(_rid, ids):
            if rid in self._running:
                self._manager.abort_request(rid=rid)

    async def release(self, ids: Iterable[str]) -> None:
        """Drop the claims of the tree that these leaves are of."""
        from sglang.srt.managers.io_struct import AbortReq

        ids = list(ids)
        await self.abort(ids)
        for tree in sorted(set(map(_tree, ids))):
            self._manager._dispatch_to_scheduler(AbortReq(rid=RELEASE + tree))

    async def update_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Replace the weights; see `spark.serve.sglang.weights.Weights.load`."""
        await self._weights.load(state, version)

    def stats(self) -> Mapping[str, int]:
        """Return what the leaves cost, in tokens."""
        return dict(self._counts)

    def _native_stops(self, params: SamplingParams) -> bool:
        """Whether SGLang itself can stop at these tokens: it adds the model's own ends to them."""
        return set(self.eos_token_ids) <= set(params.stop_token_ids)

    def _rank(self, leaf: str) -> int | None:
        """Return the data-parallel replica of a leaf's tree, where there are several."""
        replicas = int(self._args.dp_size)
        return None if replicas == 1 else derive_seed("replica", _tree(leaf)) % replicas

    def _delta(self, request: LeafRequest, step: Mapping[str, Any], seen: int) -> Delta:
        """Return what a step of SGLang's stream adds to the first `seen` tokens."""
        meta = step["meta_info"]
        reason = meta["finish_reason"]
        if reason is not None and reason["type"] == "abort":
            _raise(reason)
        tokens, finish = list(step["output_ids"][seen:]), _finish(reason)
        stops = () if self._native_stops(request.params) else request.params.stop_token_ids
        ends = [at for at, token in enumerate(tokens) if token in stops]
        if ends:
            tokens, finish = tokens[: ends[0] + 1], "stop"
        end = seen + len(tokens)
        constraint = request.params.constraint
        self._counts["generated"] += len(tokens)
        return Delta(
            tokens=tokens,
            logprobs=meta["spark_logprob"][seen:end],
            entropies=meta["spark_entropy"][seen:end],
            log_kept_mass=meta["spark_log_kept_mass"][seen:end],
            allowed=allowed(constraint, step["output_ids"][:end], seen) if constraint else {},
            finish_reason=finish,
            fork=self._fork(request, int(meta["cached_tokens"])) if seen == 0 else None,
            weight_version=_version(meta["weight_version"]),
        )

    def _fork(self, request: LeafRequest, cached: int) -> Fork | None:
        if request.fork_at is None:
            return None
        again = max(0, request.fork_at - cached)
        self._counts["forks"] += 1
        self._counts["recomputed"] += again
        path: ForkPath = "exact" if again <= 1 else "cache" if cached else "recompute"
        return Fork(path=path, recomputed=again)


def sampling(
    request: LeafRequest, output: list[int], most: int, native_stops: bool
) -> dict[str, Any]:
    """Return SGLang's sampling parameters of a leaf that starts with `output`."""
    params = request.params
    spark: dict[str, Any] = {"tree": _tree(request.id), "output": output, "score": True}
    if request.parent is not None:
        spark |= {"parent": _rid(request.parent), "at": request.fork_at}
    if params.constraint is not None:
        spark["choices"] = wire_of(params.constraint)
    given = {OPTIONS[name]: value for name, value in request.options.items()}
    return {
        "max_new_tokens": len(output) + most,
        "temperature": params.temperature,
        "top_k": params.top_k or -1,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "sampling_seed": params.seed,
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": not native_stops,
        "custom_params": {"spark": spark},
        **given,
    }


def allowed(constraint: TokenConstraint, tokens: list[int], seen: int) -> dict[int, list[int]]:
    """Return offset in `tokens[seen:]` -> ids that the scheduler's twin of `constraint` allowed."""
    found = {}
    for at in range(seen, len(tokens)):
        if (ids := constraint.allowed(tokens[:at])) is not None:
            found[at - seen] = list(ids)
    return found


def wire_of(constraint: TokenConstraint) -> dict[str, Any]:
    """Return a constraint as data. Raises ValueError for one that is code only."""
    wire = getattr(constraint, "wire", None)
    if wire is None:
        raise ValueError(
            f"{type(constraint).__name__} cannot be sent to SGLang: use choices behind a tag "
            "(recipes: --rollout.no_constrain)"
        )
    return dict(wire())


def _tree(leaf: str) -> str:
    """Return the tree of a leaf, whose id is TREE/REQUEST.INDEX."""
    return leaf.partition("/")[0]


def _rid(leaf: str) -> str:
    """Return SGLang's request id: no leaf's is the beginning of another's, since it aborts such."""
    return f"{leaf}."


def _finish(reason: Mapping[str, Any] | None) -> FinishReason | None:
    return None if reason is None else ("length" if reason["type"] == "length" else "stop")


def _free(request: LeafRequest) -> Fork | None:
    return None if request.fork_at is None else Fork(path="exact")


def _version(name: str) -> int:
    """Return the weights' version; SGLang calls those of the start "default"."""
    return int(name) if name.isdecimal() else 0


def _raise(reason: Mapping[str, Any]) -> None:
    message = str(reason.get("message") or "SGLang aborted the request")
    if reason.get("status_code") == 503:
        raise RequestError(message, status=503, retry_s=FULL_RETRY_S)
    raise ValueError(message) if reason.get("status_code") == 400 else RuntimeError(message)
