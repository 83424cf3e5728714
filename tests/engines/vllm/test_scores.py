"""Scores of every sampled token: exact, complete, whatever else the request asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Harness, Stream
from models import VOCAB, logits, prompt
from vllm import SamplingParams

from spark.engines.vllm import worker
from spark.engines.vllm.branch import Branch
from spark_kernels.score import op

pytestmark = pytest.mark.vllm

TEMPERATURE, TOP_K = 0.8, 20


def truth(family: str, tokens: list[int], new: list[int], temperature: float) -> torch.Tensor:
    """Return fp64 [len(new), 2]: log-probability and entropy by transformers' logits."""
    rows = logits(family, tokens + new)[len(tokens) - 1 : -1]
    logp = (rows / temperature).log_softmax(-1)
    taken = logp.gather(-1, torch.tensor(new)[:, None])[:, 0]
    plain = rows.log_softmax(-1)
    return torch.stack((taken, -(plain.exp() * plain).sum(-1)), dim=1)


def check(stream: Stream, tokens: list[int], temperature: float, family: str = "qwen3") -> None:
    """Compare the scores of all tokens of `stream` with the truth."""
    told = stream.scores
    ours = torch.tensor([told.logprobs, told.entropies], dtype=torch.float64).T
    assert len(ours) == len(stream.tokens) > 0
    wanted = truth(family, tokens, stream.tokens, temperature)
    assert (ours[:, 1] - wanted[:, 1]).abs().max() < 5e-6
    # logits of some hundred nats spread lose more in fp32 than the entropy does
    assert (ours[:, 0] - wanted[:, 0]).abs().max() < 5e-5


@pytest.mark.parametrize("sampler", ["spark", "stock"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_scores_equal_transformers(engines: Any, family: str, sampler: str) -> None:
    harness: Harness = engines(family, branching=switch(sampler))
    tokens = prompt(45, 1)
    for name, temperature in (("random", TEMPERATURE), ("greedy", 0.0)):
        params = {"temperature": temperature, "top_k": TOP_K, "seed": 3, "max_tokens": 40}
        harness.add(name, tokens, Branch(), **params)
    harness.finish()
    random, greedy = harness.streams.pop("random"), harness.streams.pop("greedy")
    check(random, tokens, TEMPERATURE, family)
    check(greedy, tokens, 1.0, family)
    rows = logits(family, tokens + random.tokens)[len(tokens) - 1 : -1] / TEMPERATURE
    kept = rows.log_softmax(-1).topk(TOP_K).values.logsumexp(-1)
    assert (torch.tensor(random.scores.log_kept_mass) - kept).abs().max() < 5e-6


def switch(sampler: str) -> dict[str, str]:
    return {"branching": "spark", "branching_sampler": sampler}


@pytest.mark.parametrize("logprobs", [None, 0, 3, -1])
def test_beside_vllms_own_logprobs(engines: Any, logprobs: int | None) -> None:
    harness: Harness = engines(max_logprobs=VOCAB, max_num_batched_tokens=64, max_num_seqs=8)
    tokens = prompt(150, 2)
    extra = {"temperature": 1.0, "seed": 1, "logprobs": logprobs}
    harness.add("asks", tokens, Branch(), **extra)
    harness.add("asks not", tokens, **extra)
    seen = []
    while harness.engine.has_unfinished_requests():
        harness.step()
        for stream in harness.streams.values():
            if stream.raw is not None and stream.raw.logprobs:
                seen.append(stream.raw.logprobs)
    asks, other = harness.streams.pop("asks"), harness.streams.pop("asks not")
    check(asks, tokens, 1.0)
    assert asks.tokens == other.tokens and other.raw.spark is None
    assert bool(seen) == (logprobs is not None)
    for (entry,) in seen:
        assert len(entry) in ({VOCAB} if logprobs == -1 else {logprobs, logprobs + 1, 1})
        assert all(0 <= token < VOCAB and said.logprob <= 0 for token, said in entry.items())


def test_final_outputs_hold_every_score(engines: Any) -> None:
    """Offline `LLM.generate`, n > 1: each completion has the scores of all its tokens."""
    harness: Harness = engines()
    tokens = prompt(33, 3)
    params = SamplingParams(
        n=3, temperature=1.0, seed=5, max_tokens=12, extra_args=Branch().as_extra_args()
    )
    (output,) = harness.llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    for completion in output.outputs:
        check(Stream(list(completion.token_ids), completion.spark), tokens, 1.0)
    assert output.kv_transfer_params is None


def test_without_the_compiled_op_torch_scores_and_says_so_once(
    engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(worker, "COMPILED", frozenset())
    monkeypatch.setattr(op, "COMPILED", frozenset())
    monkeypatch.setattr(worker.logger, "warning", lambda text, *values: said.append(text % values))
    # an engine that no other test gets
    harness, tokens = engines(max_num_seqs=3), prompt(45, 1)
    for seed in range(3):
        harness.add(f"r{seed}", tokens, Branch(), temperature=TEMPERATURE, seed=seed)
    harness.finish()
    for stream in harness.streams.values():
        check(stream, tokens, TEMPERATURE)
    harness.streams.clear()
    (line,) = said
    assert "score runs as its torch reference" in line


def test_branching_needs_the_switch(engines: Any) -> None:
    harness: Harness = engines(branching={})
    with pytest.raises(ValueError, match="--branching spark"):
        harness.add("child", prompt(9), Branch())
