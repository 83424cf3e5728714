"""Scores are exact, and Spark's sampler draws from the distribution that SGLang's does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from offline import Offline, Output
from tiny_models import VOCAB, direct_logits, prompt, tiny, tokenizer

pytestmark = pytest.mark.sglang


def truth(engine: Offline, tokens: list[int], output: list[int]) -> torch.Tensor:
    """Return transformers' logits [len(output), V] that each output token was drawn from."""
    logits = direct_logits(tiny(engine.family), [*tokens, *output]).double()
    return logits[len(tokens) - 1 : len(tokens) - 1 + len(output)]


def kept(probs: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    """Return which of `probs` [V] SGLang keeps: top-p is judged on the whole distribution."""
    order = probs.argsort(descending=True)
    ranked = probs[order]
    keep = ranked.cumsum(0) - ranked <= top_p
    if top_k:
        keep &= torch.arange(len(probs)) < top_k
    keep &= ranked >= min_p * ranked[0]
    mask = torch.zeros(len(probs), dtype=torch.bool)
    mask[order[keep]] = True
    return mask


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 9},
        {"temperature": 1.3, "top_k": 11, "top_p": 0.6, "min_p": 0.02},
    ],
    ids=["greedy", "plain", "top-k", "all"],
)
def test_scores_are_exact(engine: Offline, params: dict[str, Any]) -> None:
    tokens = prompt(23, 30)
    how = {**params, "sampling_seed": 5}
    out: Output = engine.run(engine.generate(tokens, 30, score=True, **how))
    temperature = params["temperature"] or 1.0
    logits = truth(engine, tokens, out.tokens)
    whole = torch.log_softmax(logits, -1)
    entropy = -(whole.exp() * whole).sum(-1)
    tempered = torch.log_softmax(logits / temperature, -1)
    picked = tempered.gather(1, torch.tensor(out.tokens)[:, None])[:, 0]
    limits = {k: v for k, v in params.items() if k != "temperature"}
    limits = limits if params["temperature"] else {"top_k": 1}
    mass = torch.stack([row.exp()[kept(row.exp(), **limits)].sum().log() for row in tempered])
    assert torch.tensor(out.scores("entropy")).double() == pytest.approx(entropy, abs=5e-6)
    assert torch.tensor(out.scores("logprob")).double() == pytest.approx(picked, abs=2e-5)
    assert torch.tensor(out.scores("log_kept_mass")).double() == pytest.approx(mass, abs=2e-5)


def test_scores_are_opted_into(single: Offline) -> None:
    tokens = prompt(9, 31)

    async def both() -> tuple[Output, Output]:
        return tuple(
            await asyncio.gather(
                single.generate(tokens, 9), single.generate(tokens, 9, tree="t", score=True)
            )
        )

    plain, scored = single.run(both())
    single.release("t")
    assert not [name for name in plain.meta if "spark" in name and any(plain.meta[name])]
    assert plain.tokens == scored.tokens
    whole = single.engine.generate(
        input_ids=tokens,
        sampling_params={
            "max_new_tokens": 9,
            "temperature": 0,
            "ignore_eos": True,
            "custom_params": {"spark": {"score": True}},
        },
    )
    assert whole["meta_info"]["spark_entropy"] == pytest.approx(scored.scores("entropy"), abs=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 12, "top_p": 0.5},
        {"temperature": 1.5, "min_p": 0.1},
    ],
    ids=["plain", "top-p", "top-k and top-p", "min-p"],
)
def test_the_distribution_is_that_of_the_stock_sampler(
    single: Offline, params: dict[str, Any]
) -> None:
    """G-test of 1,500 first tokens against the exact probabilities."""
    tokens, draws = prompt(12, 32), 1500
    temperature = params["temperature"]
    limits = {name: value for name, value in params.items() if name != "temperature"}
    probs = torch.softmax(truth(single, tokens, [0])[0] / temperature, -1)
    probs = torch.where(kept(probs, **limits), probs, 0.0)
    probs /= probs.sum()

    async def sample() -> list[int]:
        found: list[int] = []
        for first in range(0, draws, 250):
            outs = await asyncio.gather(
                *(
                    single.generate(tokens, 1, sampling_seed=seed, **params)
                    for seed in range(first, first + 250)
                )
            )
            found += [out.tokens[0] for out in outs]
        return found

    counts = torch.bincount(torch.tensor(single.run(sample())), minlength=VOCAB).double()
    assert counts[probs == 0].sum() == 0, "a token that is not kept was drawn"
    seen = counts > 0
    statistic = 2 * (counts[seen] * (counts[seen] / (draws * probs[seen])).log()).sum()
    freedom = int((probs > 0).sum()) - 1
    # mean `freedom`, variance twice that: five standard deviations
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_seeds_fix_the_draws_whatever_the_batch(engine: Offline) -> None:
    tokens = prompt(15, 33)
    how = {"temperature": 1.0, "top_p": 0.9}

    async def twice() -> tuple[list[Output], list[Output]]:
        alone = [await engine.generate(tokens, 20, sampling_seed=s, **how) for s in range(3)]
        crowd = [engine.generate(prompt(20 + i, 34), 30, **how) for i in range(5)]
        seeded = [engine.generate(tokens, 20, sampling_seed=s, **how) for s in range(3)]
        together = await asyncio.gather(*seeded, *crowd)
        return alone, together[:3]

    alone, together = engine.run(twice())
    assert [out.tokens for out in alone] == [out.tokens for out in together]
    assert len({tuple(out.tokens) for out in alone}) == 3


@pytest.mark.parametrize(
    "params",
    [
        {"frequency_penalty": 1.5, "presence_penalty": 0.5},
        {"repetition_penalty": 1.4},
        {"min_new_tokens": 60, "stop_token_ids": list(range(0, 97, 3)), "ignore_eos": False},
        {"logit_bias": {"5": 6.0, "7": 5.0}, "frequency_penalty": 0.4},
        {"temperature": 1.0, "top_p": 0.9, "sampling_seed": 77},
        {"regex": "([a-z <>/]{1,3} )*"},
        {"stop": ["k o"], "temperature": 1.2, "sampling_seed": 3},
    ],
    ids=["additive", "repetition", "min-tokens", "bias", "seed", "grammar", "stop"],
)
def test_a_fork_goes_on_as_if_it_had_sampled_from_the_start(
    engine: Offline, params: dict[str, Any]
) -> None:
    tokens = prompt(13, 35)

    async def compare() -> None:
        whole = await engine.generate(tokens, 90, tree="same", score=True, **params)
        for at in sorted({1, 7, len(whole.tokens) // 2, len(whole.tokens) - 1} - {0}):
            child = await engine.fork(whole, tokens, at, 90 - at, tree="same", score=True, **params)
            assert child.tokens == whole.tokens[at:], f"at {at}"
            assert child.meta["finish_reason"] == whole.meta["finish_reason"]
            assert child.scores("entropy") == pytest.approx(whole.scores("entropy")[at:], abs=1e-4)
        engine.release("same")

    engine.run(compare())


def test_a_grammar_counts_as_kept_mass(single: Offline) -> None:
    tokens = prompt(11, 36)
    out = single.run(single.generate(tokens, 12, score=True, regex="[a-e ]*"))
    logits = truth(single, tokens, out.tokens)
    whole = torch.log_softmax(logits, -1)
    entropy = -(whole.exp() * whole).sum(-1)
    assert torch.tensor(out.scores("entropy")).double() == pytest.approx(entropy, abs=5e-6)
    assert all(mass < -0.1 for mass in out.scores("log_kept_mass"))


def test_choices_follow_their_tag_and_fork_half_way(engine: Offline) -> None:
    tokens = prompt(17, 37)
    free = engine.greedy(tokens, 20)
    said = [tokenizer().decode(free[: end + 1]).rstrip() for end in range(20)]
    # the first text of some length that nothing before it ends in
    start = next(i for i in range(2, 20) if len(said[i]) > len(said[i - 1]))
    opening = said[start][-4:]
    assert not any(text.endswith(opening) for text in said[:start])
    choices = [[50, 51, 52], [50, 40], [60]]
    wire = {"opening": opening, "choices": choices, "before": []}

    async def constrained() -> None:
        how = {"tree": "choices", "score": True}
        strangers = [engine.generate(prompt(9, 38), 20, regex="[a-e ]*") for _ in range(2)]
        whole, *_ = await asyncio.gather(
            engine.generate(tokens, 20, choices=wire, **how), *strangers
        )
        after = whole.tokens[start + 1 :]
        assert whole.tokens[: start + 1] == free[: start + 1]
        assert any(after[: len(choice)] == choice for choice in choices)
        assert all(mass < 0 for mass in whole.scores("log_kept_mass")[start + 1 : start + 2])
        at = start + 2
        rest = wire | {"before": whole.tokens[:at]}
        child = await engine.fork(whole, tokens, at, 20 - at, choices=rest, **how)
        assert child.tokens == whole.tokens[at:]
        bad = await engine.generate(tokens, 5, choices={"opening": "<a>", "choices": []})
        assert "spark.choices.choices must be non-empty" in str(bad.error)
        engine.release("choices")

    engine.run(constrained())
