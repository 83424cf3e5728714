"""The scheduler's side of a fork: hooks that turn a child into a request resumed half way."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from spark.engines.sglang import versions
from spark.engines.sglang.choices import make_grammar
from spark.engines.sglang.claims import Claims
from spark.engines.sglang.hooks import Hook, installed
from spark.engines.sglang.member import Member, member_of
from spark.engines.sglang.tail import Pages

RELEASE = "spark-release:"
"""Prefix of the request id in the abort message that releases a tree: the one message that SGLang
hands to every rank of every data-parallel replica."""
SCORES = ("spark_logprob", "spark_entropy", "spark_log_kept_mass")
"""The lists in `meta_info`, aligned with the output tokens."""


def claims_of(scheduler: Any) -> Claims:
    """Return the scheduler's claims, made when first asked for.

    Raises ValueError for a model whose state cannot be shared at any token.
    """
    cache = scheduler.tree_cache
    if getattr(cache, "spark_claims", None) is None:
        if cache.supports_mamba():
            raise ValueError(
                f"spark.tree does not go with {scheduler.server_args.model_path!r}, which keeps a "
                "recurrent state: it cannot be forked, leave spark.tree out or serve another model"
            )
        # without overlap the forward passes run on the scheduler's own stream
        stream = scheduler.forward_stream_ctx if scheduler.enable_overlap else nullcontext()
        cache.spark_claims = Claims(cache, Pages(cache, stream))
    return cache.spark_claims


def on_generate(original: Callable[..., Any], scheduler: Any, received: Any, **kwargs: Any) -> Any:
    """A request arrives: if it is a fork, keep what it shares; if it is wrong, refuse it."""
    try:
        member = member_of(received.sampling_params)
        if member is not None:
            _admit(scheduler, received, member)
    except (TypeError, ValueError) as error:
        return _refuse(scheduler, received, str(error))
    return original(scheduler, received, **kwargs)


def _admit(scheduler: Any, received: Any, member: Member) -> None:
    params = received.sampling_params
    if member.choices is not None:
        if params.json_schema or params.regex or params.ebnf or params.structural_tag:
            raise ValueError("spark.choices does not go with a grammar: leave one of them out")
        # checked here, made again when the request is queued
        make_grammar(member.choices, scheduler.tokenizer, scheduler.model_config.vocab_size)
    if received.return_logprob and member.output:
        raise ValueError("return_logprob does not go with spark.output: use spark.score")
    tokens = [*received.input_ids, *member.output]
    limit = scheduler.max_req_input_len
    if len(tokens) >= limit:
        raise ValueError(f"a fork of {len(tokens)} tokens exceeds the longest input, {limit - 1}")
    if member.output and max(member.output) >= scheduler.model_config.vocab_size:
        raise ValueError(
            f"spark.output has token {max(member.output)}, the vocabulary is "
            f"{scheduler.model_config.vocab_size}"
        )
    if params.max_new_tokens is not None and params.max_new_tokens <= len(member.output):
        raise ValueError(
            f"max_new_tokens={params.max_new_tokens} counts the {len(member.output)} tokens of "
            "spark.output: make it larger"
        )
    if member.tree is None:
        return
    claims = claims_of(scheduler)
    if member.parent is not None:
        if member.parent not in claims.known.get(member.tree, ()):
            raise ValueError(
                f"spark.parent {member.parent!r} is not a request of tree {member.tree!r}"
            )
        if not 0 < member.at <= len(tokens):
            raise ValueError(f"spark.at must be in [1, {len(tokens)}], got {member.at}")
        live = [*scheduler.collect_inflight_reqs(), *scheduler.waiting_queue]
        parent = next((req for req in live if req.rid == member.parent), None)
        claims.share(member, received.rid, tokens, parent)
    claims.join(member, received.rid)


def _refuse(scheduler: Any, received: Any, message: str) -> None:
    """Answer as SGLang answers other bad requests: an abort with status 400."""
    from sglang.srt.managers.schedule_batch import Req

    received.sampling_params.custom_params = None
    req = Req(
        received.rid,
        received.input_text,
        received.input_ids,
        received.sampling_params,
        vocab_size=scheduler.model_config.vocab_size,
        http_worker_ipc=received.http_worker_ipc,
    )
    req.tokenizer = scheduler.tokenizer
    req.set_finish_with_abort(message)
    scheduler.init_req_max_new_tokens(req)
    scheduler._add_request_to_queue(req)


def on_queue(original: Callable[..., Any], scheduler: Any, req: Any, **kwargs: Any) -> Any:
    """A request, its grammar compiled, joins the queue: give it the output it starts with."""
    fresh = not hasattr(req, "spark")
    if fresh:
        req.spark = member_of(req.sampling_params)
        req.spark_replica = versions.replica(scheduler)
    if fresh and req.spark is not None and req.to_finish is None:
        _resume(req)
    return original(scheduler, req, **kwargs)


def _resume(req: Any) -> None:
    """Bring `req` to the state after it had sampled `spark.output` itself."""
    output = array("q", req.spark.output)
    if req.spark.choices is not None:
        req.grammar = make_grammar(req.spark.choices, req.tokenizer, req.vocab_size)
    elif req.grammar is not None and not _follows(req.grammar, output):
        req.set_finish_with_abort("spark.output does not follow the request's grammar")
        return
    req.output_ids = output
    req.send_token_offset = len(output)
    if req.spark.score:
        # lists in meta_info are aligned with the output; nobody asks for the first ones
        req.customized_info = {name: [None] * len(output) for name in SCORES}


def _follows(grammar: Any, output: array[int]) -> bool:
    """Advance a compiled grammar by `output`; False where it does not take a token."""
    try:
        for token in output:
            grammar.accept_token(token)
    except ValueError:
        return False
    return True


def on_abort(original: Callable[..., Any], scheduler: Any, received: Any) -> Any:
    """An abort message arrives: it may be the release of a tree."""
    if not received.rid.startswith(RELEASE):
        return original(scheduler, received)
    claims = getattr(scheduler.tree_cache, "spark_claims", None)
    if claims is not None:
        claims.release(received.rid.removeprefix(RELEASE))
    return None


def on_match(result: Any, req: Any, tree_cache: Any = None, *_: Any, **__: Any) -> None:
    """A request's prefix was looked up."""
    claims = getattr(tree_cache, "spark_claims", None)
    if claims is not None:
        claims.attach(req)


def on_allocated(result: Any, batch: Any) -> None:
    """The rows of a prefill batch were written."""
    claims = getattr(batch.tree_cache, "spark_claims", None)
    if claims is not None:
        for req in batch.reqs:
            claims.settle(req)


def on_release(req: Any, tree_cache: Any, *_: Any, **__: Any) -> None:
    """A request gives its KV back: a finished member's stays claimed."""
    member = getattr(req, "spark", None)
    if member is not None and member.tree is not None and req.finished() and req.kv.holds_kv:
        claims = getattr(tree_cache, "spark_claims", None)
        if claims is not None and member.tree in claims.known:
            claims.finish(req)


def on_flush(result: bool, scheduler: Any, *_: Any, **__: Any) -> None:
    """The cache was flushed, or not because requests run."""
    if result and getattr(scheduler.tree_cache, "spark_claims", None) is not None:
        scheduler.tree_cache.spark_claims.forget()


def on_held(result: int, observer: Any) -> int:
    """SGLang's leak check counts what sessions hold; claims hold in the same sense."""
    claims = getattr(observer.tree_cache, "spark_claims", None)
    return result if claims is None else result + claims.held_tokens


def on_decode_memory(original: Callable[..., bool], batch: Any, *args: Any, **kwargs: Any) -> bool:
    """Before a running request is retracted for lack of memory, old claims yield."""
    fits = original(batch, *args, **kwargs)
    claims = getattr(batch.tree_cache, "spark_claims", None)
    while not fits and claims is not None and claims.yield_oldest():
        fits = original(batch, *args, **kwargs)
    return fits


def on_prefill(original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
    """What was aborted in the queue goes; where nothing runs and nothing fits, old claims yield."""
    claims = getattr(scheduler.tree_cache, "spark_claims", None)
    if claims is not None:
        claims.forsake((*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue))
    plan = original(scheduler, running_batch)
    while (
        plan.batch_to_run is None
        and claims is not None
        and scheduler.waiting_queue
        and running_batch.is_empty()
        and claims.yield_oldest()
    ):
        # set when the first request did not fit, and looked at before any is tried again
        running_batch.batch_is_full = False
        plan = original(scheduler, running_batch)
    return plan


SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
HOOKS = [
    Hook(f"{SCHEDULER}.handle_generate_request", "around", on_generate),
    Hook(f"{SCHEDULER}._add_request_to_queue", "around", on_queue),
    Hook(f"{SCHEDULER}.abort_request", "around", on_abort),
    Hook(f"{SCHEDULER}.flush_cache", "after", on_flush),
    Hook(f"{SCHEDULER}.get_new_batch_prefill", "around", on_prefill),
    Hook("sglang.srt.managers.schedule_batch.Req.init_next_round_input", "after", on_match),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem",
        "around",
        on_decode_memory,
    ),
    Hook("sglang.srt.mem_cache.allocation.alloc_for_extend", "after", on_allocated),
    Hook("sglang.srt.mem_cache.common.release_kv_cache", "before", on_release),
    Hook(
        "sglang.srt.managers.scheduler_components.pool_stats_observer."
        "SchedulerPoolStatsObserver.session_held_tokens",
        "after",
        on_held,
    ),
]
if installed() >= (0, 5, 22):
    HOOKS.append(
        Hook("sglang.srt.mem_cache.allocation._prefix_kv_indices", "around", versions.prefix_slots)
    )
