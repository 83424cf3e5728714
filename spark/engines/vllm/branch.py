"""What a request says about its place in a tree; rides in `SamplingParams.extra_args`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

KEY = "spark"


@dataclass(kw_only=True, slots=True, frozen=True)
class Branch:
    """One leaf's request.

    Example:
        SamplingParams(extra_args=Branch(name="t1/4", parent="t1/0", fork_at=37).as_extra_args())
    """

    name: str | None = None
    """What children call this request by; unique among the live ones. None = it has no children."""
    parent: str | None = None
    """Name of the request whose KV the first `fork_at` tokens can be taken from."""
    fork_at: int = 0
    """Tokens shared with the parent."""
    prompt_length: int | None = None
    """Tokens of the request's prompt that are prompt; the rest were sampled earlier and count as
    output: for penalties, min_tokens, max_tokens and the grammar. None = all are prompt."""
    hold: bool = False
    """Keep the KV when the request finishes, until it is released or the time limit passes."""
    constraint: dict[str, Any] | None = None
    """Arguments of `tries.TrieGrammar`. vLLM asks the grammar only where the request also has
    structured outputs: their kind does not matter then."""
    scores: bool = True
    """Report entropy, log-probability and kept mass of every token."""

    def as_extra_args(self) -> dict[str, Any]:
        """Return the value for `SamplingParams.extra_args`; what is as usual is left out."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return {KEY: {name: told[name] for name in told if told[name] != getattr(USUAL, name)}}


USUAL = Branch()


def branch_of(params: Any) -> Branch | None:
    """Return the branch that a vLLM `SamplingParams` carries, if it does.

    Raises ValueError for an unknown field.
    """
    told = (getattr(params, "extra_args", None) or {}).get(KEY)
    if told is None:
        return None
    try:
        return Branch(**told)
    except TypeError as error:
        raise ValueError(f"extra_args[{KEY!r}]={told!r}: {error}") from None


def check(branch: Branch, request: Any) -> None:
    """Raise ValueError unless `branch` fits vLLM's EngineCoreRequest."""
    params, tokens = request.sampling_params, request.prompt_token_ids
    if request.mm_features or request.prompt_embeds is not None:
        for name in ("name", "parent", "prompt_length"):
            if (value := getattr(branch, name)) is not None:
                raise ValueError(
                    f"{name}={value!r}: forks go by token ids, which say nothing of images, audio "
                    "or prompt_embeds: leave these or it out"
                )
        return
    for name in ("fork_at", "prompt_length"):
        value = getattr(branch, name)
        given = branch.parent is not None if name == "fork_at" else value is not None
        if given and not 1 <= value <= len(tokens):
            raise ValueError(f"{name}={value} must be in [1, {len(tokens)}], the given tokens")
    if branch.name is not None and params.n != 1:
        raise ValueError(f"n={params.n} with a name: children could not tell which is their parent")
    if branch.parent is not None and params.prompt_logprobs is not None:
        raise ValueError("prompt_logprobs needs the whole prompt computed: leave parent out")
