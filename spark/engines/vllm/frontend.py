"""The front end's part: every CompletionOutput of a scored request gets `.spark`: TokenScores.

A delta holds the new tokens' scores, a cumulative or final output all of them; deltas that vLLM
merges for a slow reader are merged here too.
"""

from __future__ import annotations

from typing import Any

from spark.engines.vllm.branch import branch_of, check
from spark.engines.vllm.hooks import around
from spark.engines.vllm.options import options
from spark.engines.vllm.scores import TokenScores, detach


def check_requests() -> None:
    """Let vLLM's input processor refuse branches that make no sense, or that nobody will honour."""
    from vllm.v1.engine.input_processor import InputProcessor

    @around(InputProcessor, "process_inputs")
    def process_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, *args, **kwargs)
        branch = branch_of(request.sampling_params)
        if branch is not None:
            if not options(self.vllm_config).on:
                raise ValueError(
                    "the request branches but this engine does not: start it with --branching spark"
                )
            check(branch, request)
        return request


def read_scores() -> None:
    """Hook into vLLM's output processor; only where branching is on, as this is done per token."""
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    @around(OutputProcessor, "process_outputs")
    def process_outputs(
        original: Any, self: Any, outputs: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        for output in outputs:
            if output.kv_transfer_params and (told := detach(output)) is not None:
                state = self.request_states.get(output.request_id)
                if state is not None:
                    own = state.__dict__
                    if "spark" not in own:
                        own["spark"] = TokenScores()
                    own["spark"].add(*told)
        return original(self, outputs, *args, **kwargs)

    @around(RequestState, "_new_completion_output")
    def new_completion_output(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        completion = original(self, *args, **kwargs)
        completion.spark = self.__dict__.get("spark")
        if self.output_kind == RequestOutputKind.DELTA:
            self.__dict__.pop("spark", None)
        return completion

    @around(RequestOutput, "add")
    def add(original: Any, self: Any, next_output: Any, aggregate: bool) -> Any:
        before = {completion.index: completion for completion in self.outputs}
        original(self, next_output, aggregate)
        for later in next_output.outputs:
            told, known = getattr(later, "spark", None), before.get(later.index)
            if aggregate and told is not None and known is not None:
                if getattr(known, "spark", None) is None:
                    known.spark = told
                else:
                    known.spark.extend(told)
