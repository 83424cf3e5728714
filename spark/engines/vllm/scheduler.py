"""vLLM's schedulers with forks and scores; chosen by the plugin when branching is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from spark.engines.vllm import scores, tries  # noqa: F401 - hooks into vLLM's grammars
from spark.engines.vllm.forks import Forks
from spark.engines.vllm.options import options

Base: Any = Any if TYPE_CHECKING else object


class Forking(Base):
    """The same additions for both schedulers; mixed in before them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.vllm_config
        self.forks = Forks(self, options(config).branching_hold_seconds)
        self._vocab_size = config.model_config.get_vocab_size()

    def add_request(self, request: Any) -> None:
        """Enqueue `request` and note its place in a tree."""
        self.forks.add(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step; parents held too long go first."""
        self.forks.held.expire()
        return super().schedule(*args, **kwargs)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Finish requests; a name instead of a request id releases what is held under it."""
        names = (request_ids,) if isinstance(request_ids, str) else request_ids
        if names is not None:
            names = list(names)
            self.forks.release(names)
        return super().finish_requests(names, finished_status)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Drop all cached KV, held parents' included: it belongs to old weights."""
        self.forks.held.clear()
        return super().reset_prefix_cache(*args, **kwargs)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Process a step; the scores leave the logprobs they came in and join their requests."""
        rows = scores.take(model_runner_output, self._vocab_size)
        # asked before the step is processed: a request that ends in it is forgotten there
        scored = self.forks.scored(scheduler_output.num_scheduled_tokens)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if refused := self.forks.refused():
            for output in (output for client in outputs.values() for output in client.outputs):
                # before 0.33 an output has no error of its own to tell
                output.stop_reason = refused.get(output.request_id, output.stop_reason)
        if scored:
            index = model_runner_output.req_id_to_index
            # all at once: numpy takes its time for every single row
            told = None if rows is None else rows.tolist()
            for output in (output for client in outputs.values() for output in client.outputs):
                if output.new_token_ids and output.request_id in scored:
                    row = None if told is None else told[index[output.request_id]]
                    path = scored[output.request_id]
                    self.forks.told(output.request_id, path)
                    scores.attach(output, row, path)
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.forks.finish(request)
        return super()._free_request(request, *args, **kwargs)


class SparkScheduler(Forking, Scheduler):
    """The synchronous scheduler."""


class SparkAsyncScheduler(Forking, AsyncScheduler):
    """The scheduler that runs one step ahead of the device."""
