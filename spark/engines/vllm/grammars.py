"""The grammar of a child: it has accepted what the ancestors sampled, as if the child had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def advance(manager: Any, request: Any, prompt_length: int) -> None:
    """Let the grammar of `request` accept its output, once it is compiled.

    `manager` is vLLM's StructuredOutputManager. Where the output does not follow the grammar, vLLM
    fails the request with the ValueError that the grammar becomes.
    """
    state, tokens = request.structured_output_request, list(request._all_token_ids)
    compiled = state._grammar

    def advanced() -> Any:
        grammar = compiled.result() if hasattr(compiled, "result") else compiled
        if isinstance(grammar, Exception):
            raise grammar
        start = constrained_from(manager, request, tokens, prompt_length)
        if not grammar.accept_tokens(request.request_id, tokens[start:]):
            raise ValueError(
                f"structured_outputs forbids the {len(tokens) - start} sampled tokens that it goes "
                "on from: repeat those they were sampled under, or give a prompt behind them"
            )
        return grammar

    state._grammar = manager.executor.submit(advanced)


def constrained_from(manager: Any, request: Any, tokens: Sequence[int], prompt_length: int) -> int:
    """Return the place of the first token that the grammar judges: the output's, behind reasoning.

    The request notes whether its reasoning has ended, which vLLM would look for in the prompt.
    """
    state, reasoner = request.structured_output_request, manager._get_reasoner(request)
    if reasoner is None or manager.enable_in_reasoning:
        return prompt_length
    if state.reasoning_ended is None:
        state.reasoning_ended = reasoner.is_reasoning_end(tokens[:prompt_length])
    if state.reasoning_ended:
        return prompt_length
    found = _reasoning_end(reasoner, tokens, prompt_length)
    state.reasoning_ended = found is not None
    return len(tokens) if found is None else found


def _reasoning_end(reasoner: Any, tokens: Sequence[int], start: int) -> int | None:
    """Return where the text behind the reasoning begins, looked for from `start` on."""
    if getattr(reasoner, "reasoning_end_token_ids", None):
        # since 0.32 some parsers know the end by a token, which may be text already
        end = reasoner.find_reasoning_end(tokens[start:])
        at = start + end.offset
        return None if at == len(tokens) else at + (not end.implicit)
    for at in range(start, len(tokens)):
        if reasoner.is_reasoning_end_streaming(tokens[: at + 1], tokens[at : at + 1]):
            return at + 1
    return None
