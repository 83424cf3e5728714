"""Model runner V1: the sampler, the grammar, and requests whose prompt ends with sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from spark.engines.vllm.bitmask import grammar_words
from spark.engines.vllm.branch import branch_of
from spark.engines.vllm.copies import with_kv_fork
from spark.engines.vllm.options import Options
from spark.engines.vllm.sampler import SparkSampler

Runner: Any = Any if TYPE_CHECKING else object


class BranchingV1(Runner):
    """Mixed in before vLLM's GPUModelRunner or CPUModelRunner."""

    branching: Options
    sampler: Any

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model and put Spark's sampler in the place of vLLM's."""
        loaded = super().load_model(*args, **kwargs)
        draws = self.branching.branching_sampler == "spark"
        self.sampler = SparkSampler.adopt(self.sampler, self, draws)
        return loaded

    def _update_states(self, *args: Any, **kwargs: Any) -> Any:
        done = super()._update_states(*args, **kwargs)
        if self.sampler.takes(self.input_batch.sampling_metadata):
            # unused then, and vLLM cannot rewind them on a CPU after a chunk of a prefill
            self.input_batch.generators.clear()
        return done

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample; a grammar reaches the sampler as a bitmask instead of changing the logits."""
        if grammar_output is not None and self.execute_model_state is not None:
            names = grammar_output.structured_output_request_ids
            words = grammar_words(self.input_batch.req_ids, names, grammar_output.grammar_bitmask)
            self.sampler.grammar = words.to(self.device, non_blocking=True)
            grammar_output = None
        return super().sample_tokens(grammar_output)


class BranchState(CachedRequestState):
    """A request whose prompt ends with tokens that were sampled: they count as output."""

    prompt_token_ids: Any
    output_token_ids: Any

    def __post_init__(self) -> None:
        """Split the prompt where its branch says."""
        branch = branch_of(self.sampling_params)
        if branch is not None and branch.prompt_length is not None:
            whole = self.prompt_token_ids
            self.prompt_token_ids = whole[: branch.prompt_length]
            self.output_token_ids = whole[branch.prompt_length :]
        super().__post_init__()


# the runner finds both by these names
gpu_model_runner.CachedRequestState = BranchState
gpu_model_runner.copy_kv_cache_blocks_inplace = with_kv_fork(
    gpu_model_runner.copy_kv_cache_blocks_inplace
)
