"""From a leaf's request to vLLM's SamplingParams."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from spark.engines.vllm.branch import Branch
from spark.serve.backend import LeafRequest
from spark.serve.protocol import RequestError

OPTIONS = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "frequency_penalty",
        "logit_bias",
        "min_tokens",
        "presence_penalty",
        "repetition_penalty",
        "structured_outputs",
    }
)
"""Fields of a request that vLLM honours besides those of `spark.engines.base.SamplingParams`."""


def vllm_params(request: LeafRequest) -> SamplingParams:
    """Return the parameters of one leaf, its place in the tree included.

    Raises ValueError for an option that vLLM refuses, or a constraint that cannot travel.
    """
    params, options = request.params, dict(request.options)
    constraint = params.constraint
    wire: dict[str, Any] | None = None
    if constraint is not None:
        if not hasattr(constraint, "wire"):
            raise ValueError(
                "the constraint cannot be sent to vLLM's engine: use one with `wire()`, as "
                "spark.rollout.constraint has"
            )
        if "structured_outputs" in options:
            raise ValueError("structured_outputs and a constraint exclude each other")
        wire = constraint.wire()
    structured = options.pop("structured_outputs", None)
    if "logit_bias" in options:
        # JSON has strings as keys
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    if wire is not None:
        # what makes vLLM ask for a grammar; ours takes its place
        structured = StructuredOutputsParams(choice=["-"])
    elif structured is not None:
        known = [field.name for field in fields(StructuredOutputsParams)]
        if unknown := sorted(structured.keys() - set(known)):
            raise RequestError(
                f"structured_outputs.{unknown[0]} is unknown; known: {', '.join(known)}",
                param="structured_outputs",
            )
        structured = StructuredOutputsParams(**structured)
    inherited = len(request.tokens) - request.prompt_length
    branch = Branch(
        name=request.id,
        parent=request.parent,
        fork_at=request.fork_at or 0,
        prompt_length=request.prompt_length,
        hold=True,
        constraint=wire,
    )
    return SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        # vLLM counts what the ancestors sampled
        max_tokens=params.max_tokens + inherited,
        stop_token_ids=list(params.stop_token_ids),
        # the caller says which tokens end the text, and looks for strings itself
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=structured,
        extra_args=branch.as_extra_args(),
        **options,
    )
