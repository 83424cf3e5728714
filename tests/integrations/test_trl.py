"""The rollout worker against TRL's own protocol, samples and trie packing."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl.experimental.async_grpo.async_rollout_worker")
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))

import bigram
from corridor import PlainCorridors
from datasets import Dataset
from reference_engine import ReferenceEngine
from trl.experimental.async_grpo import AsyncGRPOTrainer
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
from trl.experimental.async_grpo.packing import TreeRow

from spark.engines.http import HTTPEngine
from spark.integrations.trl import TOKENWISE, SparkRolloutWorker, node_samples
from spark.rollout import Chat, RolloutConfig
from spark.train.credit import CreditConfig, credit
from spark.train.pack import pack, trained_offsets

CONFIG = RolloutConfig(leaves=6, roots=2, horizon=8, max_tokens=16, pacing="first_come")


def worker(**options: Any) -> SparkRolloutWorker:
    values = {
        "engine": lambda: ReferenceEngine(bigram.next_logits, bigram.tokenizer()),
        "source": PlainCorridors(),
        "chat": Chat(bigram.tokenizer()),
        "tasks": ["corridor/2/1", "corridor/1/0"],
        "config": CONFIG,
        "together": 2,
    }
    return SparkRolloutWorker(**values | options)


def trained_tree() -> Any:
    import asyncio

    from spark.rollout import rollout

    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    for seed in range(20):
        (tree,) = asyncio.run(
            rollout(
                ["corridor/1/0"],
                engine=engine,
                source=PlainCorridors(),
                chat=Chat(bigram.tokenizer()),
                config=CONFIG,
                seed=seed,
            )
        )
        if any(term.advantage for (term,) in credit(tree, TOKENWISE)):
            return tree
    raise AssertionError("no tree with different rewards")


def test_samples_train_every_node_once_with_its_credit() -> None:
    tree = trained_tree()
    samples = list(node_samples(tree, TOKENWISE, group=7, version=3))
    terms = [term for (term,) in credit(tree, TOKENWISE)]
    taught = [
        (index, term)
        for index, term in enumerate(terms)
        if term.advantage and trained_offsets(tree.nodes[index])
    ]
    assert len(samples) == len(taught) > 3
    for sample, (index, term) in zip(samples, taught, strict=True):
        node = tree.nodes[index]
        assert isinstance(sample, RolloutSample)
        assert (sample.group_id, sample.model_version) == (7, 3)
        assert len(sample.input_ids) == len(sample.completion_mask) == len(sample.old_log_probs)
        drawn = sample.completion_mask[-len(node.tokens) :].nonzero()[0].tolist()
        assert drawn == trained_offsets(node), "a token that had to come is no choice"
        assert sample.completion_mask.sum() == len(trained_offsets(node))
        whole = sample.old_log_probs[-len(node.tokens) :].tolist()
        assert whole == pytest.approx(node.logprobs), "TRL's own are over the whole vocabulary"
        own = sample.input_ids[-len(node.tokens) :].tolist()
        assert own == node.tokens
        assert sample.advantage == pytest.approx(term.advantage * term.weight)
        assert sample.old_log_probs[: -len(node.tokens)].sum() == 0


def test_trl_packs_the_nodes_into_the_tree_they_came_from() -> None:
    """One token of a fork is repeated there for every branch but the first, none here."""
    tree = trained_tree()
    row = TreeRow()
    for sample in node_samples(tree, TOKENWISE, group=0, version=0):
        row.add(
            {
                "input_ids": sample.input_ids,
                "completion_mask": sample.completion_mask,
                "old_log_probs": sample.old_log_probs,
                "advantage": sample.advantage,
                "group_id": 0,
                "metrics": sample.metrics,
            }
        )
    packed = row.pack()["input_ids"].numel()
    (ours,) = pack([tree], [credit(tree, TOKENWISE)], 10**6)
    apart = sum(len(s.input_ids) for s in node_samples(tree, TOKENWISE, group=0, version=0))
    assert packed < apart / 2
    assert packed <= len(ours.tokens) + len(tree.nodes)


def test_the_worker_obeys_trls_protocol() -> None:
    made = worker(queue_size=30)
    for name in ("start", "stop", "update_model_version", "check_health"):
        assert callable(getattr(made, name))
    made.update_model_version(5)
    made.start()
    samples = [made.rollout_buffer.get(timeout=300) for _ in range(50)]
    made.check_health(60.0)
    made.stop()
    assert {sample.model_version for sample in samples} == {5}
    assert len({sample.group_id for sample in samples}) > 1
    assert all(sample.advantage for sample in samples)
    with pytest.raises(ValueError, match='credit_config needs normalise="token"'):
        worker(credit_config=CreditConfig())


def test_its_example_runs() -> None:
    example = inspect.cleandoc(SparkRolloutWorker.__doc__ or "").partition("Example:\n")[2]
    names: dict[str, Any] = {
        "AsyncGRPOTrainer": inspect.signature(AsyncGRPOTrainer).bind,
        "Chat": Chat,
        "Dataset": Dataset,
        "HTTPEngine": HTTPEngine,
        "RolloutConfig": RolloutConfig,
        "SparkRolloutWorker": SparkRolloutWorker,
        "model": "Qwen/Qwen3-0.6B",
        "source": PlainCorridors(),
        "tokenizer": bigram.tokenizer(),
    }
    exec(textwrap.dedent(example), names)
    given = names["trainer"].arguments
    assert given["rollout_worker"] is names["worker"]
    assert len(given["train_dataset"]) == len(names["worker"].tasks) == 256


def test_a_failure_is_told() -> None:
    def broken() -> Any:
        raise OSError("no server")

    made = worker(engine=broken)
    made.start()
    made._thread.join()
    with pytest.raises(RuntimeError, match="the rollout worker failed: no server"):
        made.check_health(1.0)
