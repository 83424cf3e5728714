"""The README's table: what users compare, as a range over all measured cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HEAD = ["what", "times as fast as", "targets met"]


@dataclass(frozen=True)
class Headline:
    """One line: the cases of an operation of a suite, in words."""

    what: str
    suite: str
    op: str
    against: dict[str, str]
    """Baselines as the results name them -> in words."""


HEADLINES = [
    Headline(
        "the same rollout trees generated again",
        "rollouts",
        "regenerate",
        {
            "chains": "independent chains with prefix caching",
            "naive": "every turn prefilled from scratch",
        },
    ),
    Headline(
        "a training step on trees",
        "training",
        "train_step",
        {"leaves": "one row for each leaf", "prompt": "sharing the prompt alone"},
    ),
    Headline(
        "a fork in vLLM, to the last child's first token",
        "vllm",
        "first_tokens",
        {"prefix_cache": "resubmission with prefix caching", "no_cache": "without"},
    ),
    Headline(
        "a fork in SGLang, to the last child's first token",
        "sglang",
        "last child's first token",
        {"radix": "resubmission with the radix cache", "disabled": "without"},
    ),
    Headline("vLLM with every token scored", "vllm", "scoring", {"vllm": "stock vLLM"}),
    Headline("SGLang with every token scored", "sglang", "all tokens scored", {"stock": "stock"}),
    Headline(
        "a whole tree in one request to the embedded engine",
        "serve",
        "whole_trees",
        {"resubmission": "a client that resubmits"},
    ),
    Headline("... to vLLM", "vllm", "whole_trees", {"resubmission": "a client that resubmits"}),
    Headline("... to SGLang", "sglang", "whole_trees", {"resubmission": "a client that resubmits"}),
    Headline(
        "decoding on the embedded engine",
        "engine",
        "decode",
        {"generate": "transformers' `generate`", "continuous": "its continuous batching"},
    ),
    Headline("... on one thread", "engine_vllm", "beside_vllm", {"vllm": "vLLM on the CPU"}),
    Headline(
        "`score`: sampling, log-probability and entropy in one read",
        "score",
        "score",
        {"torch": "torch"},
    ),
    Headline("`kv_fork`: a tail block for the children", "kv_fork", "kv_fork", {"torch": "torch"}),
    Headline(
        "`tree_attention`: branches over what they share",
        "tree_attention",
        "tree_attention",
        {"unshared": "the same without sharing"},
    ),
]


def lines(stored: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table under `HEAD`, from the results of the suites."""
    cases = {result["suite"]: result["cases"] for result in stored}
    return [line(each, cases[each.suite]) for each in HEADLINES if each.suite in cases]


def line(headline: Headline, cases: list[dict[str, Any]]) -> list[str]:
    """Return one line: the least and the greatest ratio, and how many targets were met."""
    # an operation's memory and counts stand in rows of their own
    timed = ("time", "throughput", "wall-clock")
    mine = [case for case in cases if case["op"] == headline.op and case["metric"] in timed]
    ranges = []
    for name, words in headline.against.items():
        ratios = [case["ratio"][name] for case in mine if name in case["ratio"]]
        ranges.append(f"{span(min(ratios), max(ratios))} {words}")
    verdicts = [case["met"] for case in mine if case["target"]]
    met = f"{sum(verdicts)} of {len(verdicts)}" if verdicts else ""
    return [headline.what, ", ".join(ranges), met]


def span(low: float, high: float) -> str:
    """Return a range of ratios, "0.99 to 1.2x", or one where both read the same."""
    least, most = rounded(low), rounded(high)
    return f"{least}x" if least == most else f"{least} to {most}x"


def rounded(ratio: float) -> str:
    """Return a ratio to two digits, of those about 1 the hundredths, of large ones all."""
    digits = 2 if ratio < 2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f}"
