"""The sampling parameters of a batch, one row a request, as the tensors that `score` takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor

from spark.engines.vllm.branch import branch_of


class Rows:
    """Renewed only when vLLM renews its own sampling metadata, i.e. when the batch changes.

    Where a seed is given, the draw of a token depends on that seed and the token's position alone;
    a request without one gets a seed when it arrives, from a stream that all tensor-parallel ranks
    share, and no two data-parallel ones.
    """

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    seed: Tensor
    min_p_first: bool
    """Whether min-p must be applied before top-p judges, as vLLM does."""
    scored: bool
    """Whether any request of the batch asked for scores."""

    def __init__(self, runner: Any) -> None:
        """`runner`: vLLM's GPUModelRunner, or what derives from it."""
        self._runner = runner
        self._stream = torch.Generator().manual_seed(stream_seed(runner))
        self._seeds: dict[str, int] = {}
        self._metadata: Any = None

    def refresh(self, metadata: Any) -> bool:
        """Bring the tensors up to date; False when `metadata` is not the live batch's."""
        batch = self._runner.input_batch
        if metadata is not batch.sampling_metadata:
            return False
        if metadata is self._metadata:
            return True
        device, names = self._runner.device, batch.req_ids
        branches = [branch_of(self._runner.requests[name].sampling_params) for name in names]
        self.scored = any(branch is not None and branch.scores for branch in branches)
        self.seed = torch.tensor(self._row_seeds(names), dtype=torch.int64, device=device)
        greedy = metadata.temperature is None
        self.temperature = self.seed.new_zeros(len(names), dtype=torch.float32)
        if not greedy:
            self.temperature = metadata.temperature
        self.top_k, self.top_p, self.min_p = metadata.top_k, metadata.top_p, min_p_of(metadata)
        self.min_p_first = self.min_p is not None and self.top_p is not None
        self._metadata = metadata
        return True

    def positions(self) -> Tensor:
        """Return int64 [B]: how many tokens stand before the one to be drawn."""
        batch = self._runner.input_batch
        lengths = torch.from_numpy(batch.num_tokens_no_spec[: batch.num_reqs].astype("int64"))
        return lengths.to(self._runner.device, non_blocking=True)

    def _row_seeds(self, names: list[str]) -> list[int]:
        requests = self._runner.requests
        self._seeds = {name: seed for name, seed in self._seeds.items() if name in requests}
        for name in names:
            if name not in self._seeds:
                given = requests[name].sampling_params.seed
                self._seeds[name] = self._draw() if given is None else given
        return [self._seeds[name] for name in names]

    def _draw(self) -> int:
        return int(torch.randint(2**62, (), generator=self._stream))


def stream_seed(runner: Any) -> int:
    """Return what fixes the seeds of unseeded requests: another for every data-parallel rank."""
    return (runner.model_config.seed or 0) + (runner.parallel_config.data_parallel_index << 32)


def min_p_of(metadata: Any) -> Tensor | None:
    """Return float32 [B] of vLLM's min-p processor; None where no request uses it."""
    for processor in metadata.logitsprocs.argmax_invariant:
        if isinstance(processor, MinPLogitsProcessor) and processor.min_p_count:
            return processor.min_p.view(-1)
    return None
