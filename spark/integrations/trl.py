"""Spark's trees for TRL: a rollout worker of its `AsyncGRPOTrainer` (trl.experimental.async_grpo).

TRL packs rows of one group that share a prefix into a trie, so that a row per node costs no more
than the tree. A sample has one advantage: that of its node, times the leaves it stands for.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from spark.core import Tree
from spark.engines.base import Engine
from spark.envs.base import EnvSource
from spark.rollout import Chat, RolloutConfig, rollout
from spark.seeds import derive_seed
from spark.train.credit import CreditConfig, credit, leaf_returns
from spark.train.credit.base import weighted_mean
from spark.train.pack import trained_offsets

# TRL weighs every trained token the same: so must the credit
TOKENWISE = CreditConfig(normalise="token")


def node_samples(tree: Tree, config: CreditConfig, group: int, version: int) -> Iterator[Any]:
    """Yield a `RolloutSample` for every node that teaches something: its path, its own tokens."""
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    metrics = {"reward": weighted_mean((r, 1.0) for r in leaf_returns(tree, config).values())}
    for index, (term,) in enumerate(credit(tree, config)):
        node = tree.nodes[index]
        chosen = trained_offsets(node)
        if not chosen or abs(term.advantage * term.weight) < 1e-9:
            continue
        before = [token for at in tree.path(index)[:-1] for token in tree.nodes[at].tokens]
        nothing = [0] * len(before)
        trained = [int(offset in chosen) for offset in range(len(node.tokens))]
        yield RolloutSample(
            prompt=[{"role": "user", "content": tree.task}],
            completion=[{"role": "assistant", "content": f"turn {node.turn}"}],
            input_ids=np.array(before + node.tokens, dtype=np.int64),
            completion_mask=np.array(nothing + trained, dtype=np.int64),
            # over the whole vocabulary, as what TRL compares them with
            old_log_probs=np.array(nothing + node.logprobs, dtype=np.float32),
            advantage=term.advantage * term.weight,
            model_version=version,
            group_id=group,
            metrics=metrics,
        )


@dataclass(kw_only=True)
class SparkRolloutWorker:
    """Rolls out trees in a thread and queues their nodes; pass it as `rollout_worker`.

    TRL compares log-probabilities over the whole vocabulary at its own `temperature`: let that of
    the configuration be the same. With constrained actions it does not see what was allowed.

    Example:
        # vllm serve MODEL --branching spark, with what TRL asks of it for its weights
        worker = SparkRolloutWorker(
            engine=lambda: HTTPEngine("http://localhost:8000"),
            source=source,
            chat=Chat(tokenizer),
            tasks=source.tasks("train", 256),
            config=RolloutConfig(leaves=8),
        )
        # TRL counts epochs by its data set and takes nothing else from it
        prompts = [[{"role": "user", "content": task}] for task in worker.tasks]
        trainer = AsyncGRPOTrainer(
            model, train_dataset=Dataset.from_dict({"prompt": prompts}), rollout_worker=worker
        )
    """

    engine: Callable[[], AbstractAsyncContextManager[Engine]]
    """Called in the worker's thread, which leaves the engine when it ends."""
    source: EnvSource
    chat: Chat
    tasks: Sequence[str]
    config: RolloutConfig
    credit_config: CreditConfig = TOKENWISE
    together: int = 8
    seed: int = 0
    queue_size: int = 4096

    def __post_init__(self) -> None:
        if self.credit_config.normalise != "token" or self.credit_config.once_per_leaf:
            raise ValueError('credit_config needs normalise="token", once_per_leaf=False for TRL')
        self.rollout_buffer: queue.Queue[Any] = queue.Queue(self.queue_size)
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        self.model_version, self._last = 0, time.monotonic()
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._roll()), daemon=True)

    def start(self) -> None:
        """Begin to roll out."""
        self._last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End after the trees under way; one that was never started has none."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def update_model_version(self, model_version: int) -> None:
        """Note which weights the engine has; samples bear the version at their start."""
        self.model_version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Raise RuntimeError when the worker has failed or has queued nothing for that long."""
        if self._error is not None:
            raise RuntimeError(f"the rollout worker failed: {self._error}") from self._error
        if time.monotonic() - self._last > stale_after_s and not self.rollout_buffer.full():
            raise RuntimeError(f"the rollout worker has queued nothing for {stale_after_s} s")

    async def _roll(self) -> None:
        try:
            async with self.engine() as engine:
                await self._queue(engine)
        except Exception as error:
            self._error = error

    async def _queue(self, engine: Engine) -> None:
        """Roll out round after round until told to stop."""
        common: dict[str, Any] = {"source": self.source, "chat": self.chat, "config": self.config}
        for first in count(0, self.together):
            groups, version = range(first, first + self.together), self.model_version
            tasks = [self.tasks[group % len(self.tasks)] for group in groups]
            seed = derive_seed("trl", self.seed, first)
            trees = await rollout(tasks, engine=engine, seed=seed, **common)
            if self._stop.is_set():
                # where no tree teaches anything, nothing below would ask
                return
            for group, tree in zip(groups, trees, strict=True):
                for sample in node_samples(tree, self.credit_config, group, version):
                    while self.rollout_buffer.full() and not self._stop.is_set():
                        await asyncio.sleep(0.01)
                    if self._stop.is_set():
                        return
                    self.rollout_buffer.put_nowait(sample)
                    self._last = time.monotonic()
