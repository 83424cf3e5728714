"""Model runner V2: the sampler and the grammar. Sampled tokens in a prompt it knows by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.v1.worker.gpu import model_runner

from spark.engines.vllm.bitmask import grammar_words
from spark.engines.vllm.copies import with_kv_fork
from spark.engines.vllm.options import Options
from spark.engines.vllm.sampler_v2 import SparkSamplerV2

Runner: Any = Any if TYPE_CHECKING else object


class BranchingV2(Runner):
    """Mixed in before vLLM's V2 GPUModelRunner."""

    branching: Options
    sampler: Any

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model and put Spark's sampler in the place of vLLM's."""
        loaded = super().load_model(*args, **kwargs)
        draws = self.branching.branching_sampler == "spark"
        self.sampler = SparkSamplerV2.adopt(self.sampler, draws)
        self.structured_outputs_worker.apply_grammar_bitmask = self._take_grammar
        return loaded

    def _take_grammar(self, logits: Tensor, batch: Any, names: list[str], bitmask: Any) -> None:
        """Give the grammar to the sampler as a bitmask instead of changing the logits."""
        words = grammar_words(batch.req_ids, names, bitmask)
        self.sampler.grammar = words.to(logits.device, non_blocking=True)


# the runner finds it by this name
model_runner.copy_kv_cache_blocks_inplace = with_kv_fork(model_runner.copy_kv_cache_blocks_inplace)
