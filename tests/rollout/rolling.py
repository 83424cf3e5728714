"""Rolls out the corridor game and checks what must hold of every rollout."""

from __future__ import annotations

import asyncio
from typing import Any

import bigram
from corridor import CorridorSource
from reference_engine import ReferenceEngine

from spark.core import Tree
from spark.rollout import Chat, RolloutConfig, rollout

CONFIG = RolloutConfig(leaves=6, roots=2, horizon=8, max_tokens=16)
TASKS = ["corridor/4/5", "corridor/3/2"]


def chat() -> Chat:
    return Chat(bigram.tokenizer())


def roll(
    config: RolloutConfig = CONFIG,
    tasks: list[str] = TASKS,
    seed: int = 0,
    source: CorridorSource | None = None,
    engine: ReferenceEngine | None = None,
    **options: Any,
) -> list[Tree]:
    """Roll out and check what must hold of every rollout."""
    source = source or CorridorSource()
    engine = engine or ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    trees = asyncio.run(
        rollout(
            tasks,
            engine=engine,
            source=source,
            chat=chat(),
            config=config,
            seed=seed,
            **options,
        )
    )
    assert not engine.live, "sequences leaked"
    assert all(env.closed for env in source.made), "environments leaked"
    for tree in trees:
        check(tree, config)
    return trees


def check(tree: Tree, config: RolloutConfig) -> None:
    """Assert what every tree satisfies."""
    leaves = tree.leaves()
    described = tree.info["leaves"]
    assert len(leaves) <= config.leaves
    assert [leaf["node"] for leaf in described] == (leaves if len(tree.nodes) > 1 else [])
    for leaf in described:
        assert tree.nodes[leaf["node"]].done == (leaf["end"] != "error")
    assert len({tuple(leaf["lineage"]) for leaf in described}) == len(described)
    for index, node in enumerate(tree.nodes):
        assert (node.parent is None) == (index == 0)
        assert node.parent is None or node.parent < index
        assert index in leaves or not node.done
        assert len({len(x) for x in (node.tokens, node.sampled, node.logprobs)}) == 1
    for children in tree.children()[1:]:
        parent = tree.nodes[tree.nodes[children[0]].parent] if children else None
        assert parent is None or (len(children) > 1) == (parent.trigger is not None)
    assert tree.info["generated"] == sum(sum(node.sampled) for node in tree.nodes)
    budget = config.max_generated_tokens
    assert budget is None or tree.info["generated"] <= budget
