"""One vLLM engine in this process, stepped by hand: a fork then happens at an exact moment.

Needs VLLM_ENABLE_V1_MULTIPROCESSING=0, which keeps the engine core in this process.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind

from spark.engines.vllm.branch import Branch
from spark.engines.vllm.scores import TokenScores


@dataclass(slots=True)
class Stream:
    """What one request has produced."""

    tokens: list[int] = field(default_factory=list)
    scores: TokenScores = field(default_factory=TokenScores)
    finish: str | None = None
    raw: Any = None
    """vLLM's last CompletionOutput."""


class Stepper:
    """Adds requests and runs engine steps; `streams` has what every request produced."""

    def __init__(self, model: str, **settings: Any) -> None:
        """`settings` are those of `vllm.LLM`; `additional_config` switches branching on."""
        self.llm = LLM(model, **settings)
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.streams: dict[str, Stream] = {}

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.engine_core.shutdown()
        del self.llm, self.engine, self.core, self.scheduler
        gc.collect()
        cleanup_dist_env_and_memory()

    def add(
        self, name: str, tokens: Sequence[int], branch: Branch | None = None, **params: Any
    ) -> str:
        """Start a request, greedy unless `params` (of SamplingParams) says otherwise."""
        sampling = SamplingParams(
            **{"temperature": 0.0, "max_tokens": 8, **params},
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if branch is None else branch.as_extra_args(),
        )
        self.engine.add_request(name, tokens_input(list(tokens)), sampling)
        self.streams[name] = Stream()
        return name

    def step(self, times: int = 1) -> None:
        """Run engine steps."""
        for _ in range(times):
            for output in self.engine.step():
                stream, (completion,) = self.streams[output.request_id], output.outputs
                stream.tokens += completion.token_ids
                stream.finish, stream.raw = completion.finish_reason, completion
                if getattr(completion, "spark", None) is not None:
                    stream.scores.extend(completion.spark)

    def until(self, name: str, tokens: int) -> None:
        """Step until the request has produced at least `tokens`, or has ended."""
        while len(self.streams[name].tokens) < tokens and self.streams[name].finish is None:
            self.step()

    def finish(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_unfinished_requests():
            self.step()

    def run(self, tokens: Sequence[int], name: str = "alone", **params: Any) -> Stream:
        """Return what an ordinary request produces with nothing in the prefix cache."""
        self.reset()
        self.add(name, tokens, **params)
        self.finish()
        return self.streams.pop(name)

    def reset(self) -> None:
        """Empty the prefix cache and drop held parents; nothing may be running."""
        assert self.llm.reset_prefix_cache()

    def abort(self, *names: str) -> None:
        """Abort requests."""
        self.engine.abort_request(list(names))

    def release(self, *names: str) -> None:
        """Release what is held under branch names."""
        self.engine.engine_core.abort_requests(list(names))

    def in_use(self) -> int:
        """Return the blocks that are referenced; vLLM's null block does not count."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
