"""One in-process engine, stepped by the test, so that a fork happens at an exact moment."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.sampling_params import RequestOutputKind

from spark.engines.vllm.branch import Branch
from spark.engines.vllm.scores import TokenScores

DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "block_size": 32,
    "num_gpu_blocks_override": 256,
    "max_num_seqs": 64,
    "seed": 0,
}


@dataclass
class Stream:
    """What one request has produced."""

    tokens: list[int] = field(default_factory=list)
    scores: TokenScores = field(default_factory=TokenScores)
    finish: str | None = None
    raw: Any = None


class Harness:
    """An engine with `--branching spark`, or without."""

    def __init__(self, model: Path, branching: dict | None = None, **settings: Any) -> None:
        chosen = {"branching": "spark"} if branching is None else branching
        self.llm = LLM(str(model), additional_config=chosen, **{**DEFAULTS, **settings})
        self.engine = self.llm.llm_engine
        core = self.engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.streams: dict[str, Stream] = {}

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.engine_core.shutdown()
        del self.llm, self.engine, self.scheduler
        gc.collect()
        cleanup_dist_env_and_memory()

    def add(self, name: str, tokens: list[int], branch: Branch | None = None, **params: Any) -> str:
        """Start a request and return its name."""
        told = {"temperature": 0.0, "max_tokens": 8, "detokenize": True, **params}
        sampling = SamplingParams(
            **told,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if branch is None else branch.as_extra_args(),
        )
        self.engine.add_request(name, {"prompt_token_ids": list(tokens)}, sampling)
        self.streams[name] = Stream()
        return name

    def step(self, times: int = 1) -> None:
        """Run engine steps and collect what they produce."""
        for _ in range(times):
            for output in self.engine.step():
                stream, (completion,) = self.streams[output.request_id], output.outputs
                stream.tokens += completion.token_ids
                stream.finish, stream.raw = completion.finish_reason, completion
                if getattr(completion, "spark", None) is not None:
                    stream.scores.extend(completion.spark)

    def until(self, name: str, tokens: int) -> None:
        """Step until the request has produced at least `tokens`."""
        while len(self.streams[name].tokens) < tokens and self.streams[name].finish is None:
            self.step()

    def finish(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_unfinished_requests():
            self.step()

    def run(self, tokens: list[int], name: str = "alone", **params: Any) -> Stream:
        """Return what an ordinary request produces with nothing in the prefix cache."""
        self.reset()
        self.add(name, tokens, **params)
        self.finish()
        return self.streams.pop(name)

    def reset(self) -> None:
        """Empty the prefix cache and drop held parents."""
        assert self.llm.reset_prefix_cache()

    def abort(self, *names: str) -> None:
        """Abort requests by the names they were added with."""
        self.engine.abort_request(list(names))

    def release(self, *names: str) -> None:
        """Release what is held under branch names."""
        self.engine.engine_core.abort_requests(list(names))

    def leaked(self) -> int:
        """Return the blocks that are still referenced; all but vLLM's null block are ours."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
