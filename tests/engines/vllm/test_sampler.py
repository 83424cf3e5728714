"""Spark's sampler inside vLLM: the same distributions as vLLM's, exact where there is no chance."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from harness import Harness
from models import VOCAB, greedy, logits, prompt
from scipy.stats import chi2
from vllm import SamplingParams
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser
from vllm.sampling_params import StructuredOutputsParams

from spark.engines.vllm.branch import Branch
from spark.engines.vllm.grammars import constrained_from

pytestmark = pytest.mark.vllm

STOCK = {"branching": "spark", "branching_sampler": "stock"}
DRAWS, TOKENS = 3000, prompt(21, 1)
CASES = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 1.7},
    "top_k": {"temperature": 1.3, "top_k": 9},
    "top_p": {"temperature": 1.3, "top_p": 0.8},
    "min_p": {"temperature": 1.5, "min_p": 0.05},
    "all three": {"temperature": 1.6, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"temperature": 1.2, "repetition_penalty": 1.8, "presence_penalty": 0.5},
    "bias": {"temperature": 1.2, "logit_bias": {3: 4.0, 50: -2.0}},
    "allowed": {"temperature": 1.2, "allowed_token_ids": [1, 2, 3, 30, 31, 32, 33, 64, 96]},
    "bad words": {"temperature": 1.2, "top_p": 0.9, "_bad_words_token_ids": [[5], [7], [61]]},
}


def counts(harness: Harness, params: dict) -> torch.Tensor:
    """Return int64 [VOCAB]: how often each token was drawn first, by many unseeded requests."""
    chosen = dict(params)
    bad = chosen.pop("_bad_words_token_ids", None)
    sampling = SamplingParams(n=DRAWS // 60, max_tokens=1, **chosen)
    sampling._bad_words_token_ids = bad
    prompts = [{"prompt_token_ids": TOKENS}] * 60
    outputs = harness.llm.generate(prompts, sampling, use_tqdm=False)
    drawn = [c.token_ids[0] for output in outputs for c in output.outputs]
    return torch.bincount(torch.tensor(drawn), minlength=VOCAB)


@pytest.mark.parametrize("case", CASES)
def test_same_distribution_as_vllms(engines: Any, case: str) -> None:
    """G-test of two samples against each other; the probability of a false alarm is 1e-4."""
    ours = counts(engines(), CASES[case])
    theirs = counts(engines(branching=STOCK), CASES[case])
    assert (ours > 0).sum() > 2
    # what one of them never draws must be rare in the other as well
    table = torch.stack((ours, theirs)).double()
    rare = table.sum(0) < 10
    table = torch.cat((table[:, ~rare], table[:, rare].sum(1, keepdim=True)), dim=1)
    table = table[:, table.sum(0) > 0]
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    g = 2 * (table * (table / expected).clamp(min=1e-300).log()).sum()
    assert g < chi2.ppf(1 - 1e-4, table.shape[1] - 1)


def test_greedy_is_exact_with_everything_on(engines: Any) -> None:
    params = {
        "temperature": 0.0,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "logit_bias": {4: 1.5},
        "min_tokens": 5,
        "stop_token_ids": list(range(0, VOCAB, 3)),
        "allowed_token_ids": [t for t in range(VOCAB) if t % 7],
        "max_tokens": 20,
    }
    found = []
    for branching in ({"branching": "spark"}, STOCK, {}):
        harness: Harness = engines(branching=branching)
        found.append(harness.run(TOKENS, **params).tokens)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 5


def test_a_seed_fixes_the_draws_in_any_company(engines: Any) -> None:
    harness: Harness = engines()
    params = {"temperature": 1.0, "seed": 17, "max_tokens": 20}
    alone = harness.run(TOKENS, **params).tokens
    for index in range(9):
        harness.add(f"s{index}", prompt(30 + index), temperature=1.0, max_tokens=5 + index)
    harness.step(2)
    harness.add("late", TOKENS, **params)
    harness.add("other", TOKENS, **{**params, "seed": 18})
    harness.finish()
    assert harness.streams["late"].tokens == alone
    assert harness.streams["other"].tokens != alone
    harness.streams.clear()


def test_unseeded_requests_differ(engines: Any) -> None:
    harness: Harness = engines()
    for index in range(4):
        harness.add(f"r{index}", TOKENS, temperature=1.5, max_tokens=10)
    harness.finish()
    assert len({tuple(stream.tokens) for stream in harness.streams.values()}) == 4
    harness.streams.clear()


def test_masks_leave_the_scores_of_the_whole_vocabulary(engines: Any) -> None:
    harness: Harness = engines()
    allowed = [2, 11, 40, 96]
    params = {"temperature": 1.0, "seed": 2, "max_tokens": 6, "allowed_token_ids": allowed}
    harness.add("masked", TOKENS, Branch(), **params)
    harness.finish()
    stream = harness.streams.pop("masked")
    assert set(stream.tokens) <= set(allowed)
    logp = logits("qwen3", TOKENS + stream.tokens)[len(TOKENS) - 1 : -1].log_softmax(-1)
    kept = logp[:, allowed].logsumexp(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    assert (torch.tensor(stream.scores.log_kept_mass) - kept).abs().max() < 2e-5
    assert (torch.tensor(stream.scores.entropies) - entropy).abs().max() < 5e-6


@pytest.mark.parametrize("branching", [{"branching": "spark"}, STOCK])
def test_log_probabilities_under_a_grammar_are_those_of_what_it_allows(
    engines: Any, branching: dict
) -> None:
    """As vLLM tells them without us, whoever else is in the batch."""
    harness: Harness = engines(branching=branching, max_logprobs=VOCAB)
    grammar = StructuredOutputsParams(choice=["look at the desk", "take a key"])
    params = {"temperature": 1.0, "max_tokens": 4}
    tokens = harness.llm.get_tokenizer().encode("then")
    harness.add("asks", tokens, seed=1, logprobs=-1, structured_outputs=grammar, **params)
    harness.add("beside", tokens, seed=2, **params)
    seen = []
    while harness.engine.has_unfinished_requests():
        harness.step()
        raw = harness.streams["asks"].raw
        if raw is not None and raw.logprobs:
            seen += raw.logprobs
    harness.streams.clear()
    assert seen
    for entry in seen:
        told = torch.tensor([each.logprob for each in entry.values()])
        assert len(told) == VOCAB and told.isneginf().any()
        assert told.exp().sum() == pytest.approx(1.0, abs=1e-5)


def text(harness: Harness, tokens: list[int]) -> str:
    """Return the text of `tokens` without the end that closes a grammar."""
    return harness.llm.get_tokenizer().decode(tokens).removesuffix("<|end|>")


@pytest.mark.parametrize("branching", [{"branching": "spark"}, STOCK])
def test_grammar(engines: Any, branching: dict) -> None:
    """A grammar is obeyed and scored as a mask; a forked child goes on inside it."""
    harness: Harness = engines(branching=branching)
    choices = ["look at the desk", "open drawer one and take a key", "take a key"]
    grammar = {"structured_outputs": StructuredOutputsParams(choice=choices)}
    params = {"temperature": 1.0, "seed": 1, "max_tokens": 40, **grammar}
    tokens = harness.llm.get_tokenizer().encode("then")
    harness.add("parent", tokens, Branch(name="p", hold=True), **params)
    harness.finish()
    parent = harness.streams.pop("parent")
    assert text(harness, parent.tokens) in choices
    assert any(mass < -0.5 for mass in parent.scores.log_kept_mass)
    cut = len(parent.tokens) // 2
    for seed in range(3):
        child = Branch(parent="p", fork_at=len(tokens) + cut, prompt_length=len(tokens))
        given = tokens + parent.tokens[:cut]
        harness.add(f"child{seed}", given, child, **{**params, "seed": seed})
    harness.finish()
    for seed in range(3):
        stream = harness.streams.pop(f"child{seed}")
        assert text(harness, parent.tokens[:cut] + stream.tokens) in choices
        assert stream.scores.fork_path == "exact"
    harness.release("p")


def test_forks_within_and_behind_reasoning(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar is asked behind the reasoning only, in children as in the whole."""
    harness: Harness = engines()
    free = greedy("qwen3", TOKENS, 20)
    end = next(at for at in range(3, 20) if free[at] not in TOKENS + free[:at])

    class Reasoner(BaseThinkingReasoningParser):
        start_token = end_token = ""

        def __init__(self, tokenizer: Any) -> None:
            self.start_token_id, self.end_token_id = -1, free[end]

    monkeypatch.setattr(harness.scheduler.structured_output_manager, "reasoner_cls", Reasoner)
    choices = ["look at the desk", "take a key"]
    params = {"structured_outputs": StructuredOutputsParams(choice=choices), "max_tokens": 40}
    harness.add("whole", TOKENS, Branch(name="whole", hold=True), **params)
    harness.finish()
    whole = harness.streams.pop("whole").tokens
    assert whole[: end + 1] == free[: end + 1]
    assert text(harness, whole[end + 1 :]) in choices
    cuts = (1, end, end + 1, end + 4)
    for cut in cuts:
        place = {"fork_at": len(TOKENS) + cut, "prompt_length": len(TOKENS)}
        harness.add(f"{cut}", TOKENS + whole[:cut], Branch(parent="whole", **place), **params)
    harness.finish()
    assert [harness.streams.pop(f"{cut}").tokens for cut in cuts] == [whole[c:] for c in cuts]
    harness.release("whole")


@pytest.mark.parametrize(
    ("end", "start", "ended"),
    [((1, False), 4, True), ((1, True), 3, True), ((3, False), 5, False)],
    ids=["a mark", "text already", "none"],
)
def test_parsers_that_know_the_end_of_reasoning_by_a_token(
    end: tuple[int, bool], start: int, ended: bool
) -> None:
    """Two tokens of prompt and three of output, in which such a parser finds `end`."""
    reasoner = Mock(reasoning_end_token_ids={7}, is_reasoning_end=lambda tokens: False)
    reasoner.find_reasoning_end.return_value = Mock(offset=end[0], implicit=end[1])
    manager = Mock(enable_in_reasoning=False, _get_reasoner=lambda request: reasoner)
    request = Mock(structured_output_request=Mock(reasoning_ended=None))
    assert constrained_from(manager, request, [1, 2, 3, 4, 5], 2) == start
    assert request.structured_output_request.reasoning_ended is ended
    reasoner.find_reasoning_end.assert_called_once_with([3, 4, 5])


@pytest.mark.parametrize("extra", [{}, {"top_p": 0.95}, {"presence_penalty": 0.1}])
@pytest.mark.parametrize("branching", [{"branching": "spark"}, STOCK])
def test_min_p_is_judged_behind_the_grammar(engines: Any, branching: dict, extra: dict) -> None:
    """The best token overall may be forbidden; it must not cut away all that are allowed."""
    harness: Harness = engines(branching=branching)
    choices = ["look at the desk", "open drawer one and take a key", "take a key"]
    tokens = harness.llm.get_tokenizer().encode("then")
    params = {"temperature": 1.0, "max_tokens": 40, "min_p": 0.3, **extra}
    for seed in range(6):
        grammar = StructuredOutputsParams(choice=choices)
        harness.add(f"{seed}", tokens, Branch(), seed=seed, structured_outputs=grammar, **params)
    harness.finish()
    for seed in range(6):
        assert text(harness, harness.streams.pop(f"{seed}").tokens) in choices


def test_children_count_their_ancestors_tokens_as_output(engines: Any) -> None:
    """Penalties, min_tokens, max_tokens and stop tokens as if sampled from the start."""
    harness: Harness = engines()
    params = {
        "temperature": 0.0,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.8,
        "frequency_penalty": 0.3,
        "min_tokens": 25,
        "max_tokens": 40,
        "stop_token_ids": greedy("qwen3", TOKENS, 60)[:40:5],
    }
    want = harness.run(TOKENS, **params).tokens
    assert len(want) >= 25
    random = {**params, "temperature": 0.9, "seed": 8}
    want_random = harness.run(TOKENS, **random).tokens
    for tokens, settings, name in ((want, params, "greedy"), (want_random, random, "random")):
        harness.add(name, TOKENS, Branch(name=name, hold=True), **settings)
        harness.until(name, 3)
        for cut in (1, 2, 3, 11, 20, 24):
            place = {"parent": name, "fork_at": len(TOKENS) + cut, "prompt_length": len(TOKENS)}
            harness.add(f"{name}{cut}", TOKENS + tokens[:cut], Branch(**place), **settings)
            harness.step(4)
        harness.finish()
        for cut in (1, 2, 3, 11, 20, 24):
            assert harness.streams.pop(f"{name}{cut}").tokens == tokens[cut:], (name, cut)
        assert harness.streams.pop(name).tokens == tokens
        harness.release(name)
    assert harness.in_use() == 0
