import asyncio
from types import SimpleNamespace

from spark.engines.base import Sample
from spark.rollout.player import Player
from spark.rollout.record import Record


class Filling:
    """Fills its context with the first sample, and knows no version with the second."""

    def __init__(self):
        self.samples = [
            Sample(tokens=[5], logprobs=[0.0], finish_reason="stop", weight_version=7),
            Sample(finish_reason="context"),
        ]

    async def sample(self, seq, params):
        return self.samples.pop(0)


def test_a_sample_without_tokens_does_not_change_the_version(monkeypatch):
    monkeypatch.setattr(Player, "_params", lambda *_: None)
    record = Record()
    nothing = dict.fromkeys(("chat", "config", "trie", "budget"))
    player = Player(engine=Filling(), record=record, seed=0, **nothing)
    trajectory = SimpleNamespace(seq=0, add_sampled=lambda sample: None)
    for _ in range(2):
        asyncio.run(player.sample(trajectory, None))
        assert record.weight_version == 7
