"""The rollout worker's end; needs no TRL, whose samples are not made here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))

import bigram
from corridor import PlainCorridors
from reference_engine import ReferenceEngine

from spark.integrations import trl
from spark.rollout import Chat, RolloutConfig


def test_stop_ends_a_worker_whose_trees_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    async def rollout(tasks: list[str], **_: Any) -> list[str]:
        rounds.append(len(rounds))
        worker._stop.set()
        if len(rounds) > 1:
            raise AssertionError("a round was begun after stop()")
        return tasks

    monkeypatch.setattr(trl, "rollout", rollout)
    monkeypatch.setattr(trl, "node_samples", lambda *_: iter(()))
    engine = ReferenceEngine(bigram.next_logits, bigram.tokenizer())
    worker = trl.SparkRolloutWorker(
        engine=lambda: engine,
        source=PlainCorridors(),
        chat=Chat(bigram.tokenizer()),
        tasks=["corridor/40/3"],
        config=RolloutConfig(),
    )
    worker.start()
    worker.stop()
    worker.check_health(60.0)
    assert rounds == [0]
    # its connections would be complained about at exit
    assert engine.left
