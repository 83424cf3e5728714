"""Trees as episodes of verifiers v1, for the tools that read its traces.jsonl.

    python -m spark.integrations.verifiers runs/first_light

An episode's trace is a graph of messages with log-probabilities and advantages per sampled token: a
node's decision becomes an assistant message, what the environment answered a user message, a leaf a
branch. Nothing of verifiers is needed to write it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spark.core import Node, Tree
from spark.rollout.store import load_trees
from spark.train.credit import CreditConfig, Term, credit, leaf_returns
from spark.train.credit.base import given_tail, weighted_mean

TRACE_VERSION = 1
Decode = Callable[[list[int]], str]


def episodes(trees: Iterable[Tree], decode: Decode) -> Iterator[dict[str, Any]]:
    """Yield `trees` as episodes; those lost before their prompt was known are left out."""
    for number, tree in enumerate(trees):
        if tree.nodes:
            # as the arm that grew it was trained
            config = CreditConfig(**tree.info.get("credit", {}))
            yield episode(tree, decode, config, f"{tree.task}/{number}")


def episode(tree: Tree, decode: Decode, config: CreditConfig, name: str) -> dict[str, Any]:
    """Return `tree` as the plain data of an episode with one trace.

    Args:
        tree: a tree with nodes and rewards.
        decode: tokens -> text.
        config: how rewards become advantages; a token has the mean of its terms by weight.
        name: of episode and trace, different for every tree.
    """
    returns = leaf_returns(tree, config)
    prompt = decode(tree.nodes[0].tokens)
    task = {"type": "SparkTask", "data": {"name": tree.task, "prompt": prompt}, "key": tree.task}
    ok = not tree.info.get("errors")
    trace = {
        "version": TRACE_VERSION,
        "id": name,
        "task": task,
        "agent": {"config": {}, "name": "spark"},
        "nodes": messages(tree, credit(tree, config), decode),
        "rewards": {"return": {"score": weighted_mean((r, 1.0) for r in returns.values())}},
        "info": {"seed": tree.seed, "weight_version": tree.weight_version},
        "is_completed": True,
        "ok": ok,
    }
    return {"id": name, "env": {"id": "spark"}, "task": task, "ok": ok, "traces": [trace]}


def messages(tree: Tree, terms: Sequence[list[Term]], decode: Decode) -> list[dict[str, Any]]:
    """Return the nodes of `tree` as messages, parents first."""
    found: list[dict[str, Any]] = []
    last: list[int | None] = []
    for node, own in zip(tree.nodes, terms, strict=True):
        parent = None if node.parent is None else last[node.parent]
        answer = len(node.tokens) - len(given_tail(node))
        for part in (slice(0, answer), slice(answer, None)):
            if node.tokens[part]:
                found.append({"parent": parent, **message(node, part, own, decode)})
                parent = len(found) - 1
        last.append(parent)
    return found


def message(node: Node, part: slice, terms: list[Term], decode: Decode) -> dict[str, Any]:
    """Return the tokens `part` of `node` as a message."""
    mask = node.sampled[part]
    each = zip(node.logprobs[part], node.log_kept_mass[part], mask, strict=True)
    logprobs = [logprob - mass for logprob, mass, drawn in each if drawn]
    advantage = weighted_mean((term.advantage, term.weight) for term in terms)
    role = "assistant" if any(mask) else "user"
    return {
        "message": {"role": role, "content": decode(node.tokens[part])},
        "sampled": any(mask),
        "token_ids": node.tokens[part],
        "mask": mask,
        "logprobs": logprobs,
        "advantages": [advantage] * len(logprobs),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write traces.jsonl next to the trees of a run."""
    parser = argparse.ArgumentParser(prog="python -m spark.integrations.verifiers")
    parser.add_argument("run", type=Path, help="folder with trees.jsonl and tokenizer/")
    run = parser.parse_args(argv).run
    for name in ("trees.jsonl", "tokenizer"):
        if not (run / name).exists():
            parser.error(f"run={run} has no {name}: name a folder of spark train or spark rollout")
    from transformers import AutoTokenizer

    decode: Any = AutoTokenizer.from_pretrained(run / "tokenizer").decode
    with (run / "traces.jsonl").open("w") as file:
        for record in episodes(load_trees(run / "trees.jsonl"), decode):
            file.write(json.dumps(record) + "\n")
    print(run / "traces.jsonl")


if __name__ == "__main__":
    main()
