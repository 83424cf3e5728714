"""The parameters of a batch: what the samplers read of vLLM's states, of either model runner."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spark.engines.vllm.bitmask import obey, pack
from spark.engines.vllm.rows import stream_seed
from spark.engines.vllm.states import chosen

pytestmark = pytest.mark.vllm


def kept(*values: float) -> SimpleNamespace:
    """Return a parameter as vLLM's UvaBackedTensor has it."""
    return SimpleNamespace(np=np.array(values), gpu=torch.tensor(values))


def test_parameters_of_a_batch() -> None:
    """In the batch's order; nothing where the whole batch leaves a parameter as it is."""
    top_p = kept(0.5, 1.0, 0.9, 1.0)
    where = np.array([2, 1])
    found = chosen(top_p, 1.0, torch.from_numpy(where), where)
    assert found is not None and found.tolist() == pytest.approx([0.9, 1.0])
    where = np.array([3, 1])
    assert chosen(top_p, 1.0, torch.from_numpy(where), where) is None


def test_a_grammar_comes_before_min_p_in_its_rows_only() -> None:
    logits = torch.arange(80.0).view(2, 40)
    grammar = pack(torch.arange(40).expand(2, -1) % 2 == 0)
    found = obey(logits, grammar, torch.tensor([0.1, 0.0]))
    assert found[0].isneginf().tolist() == [bool(token % 2) for token in range(40)]
    assert torch.equal(found[1], logits[1])
    assert obey(logits, grammar, None) is logits


def test_data_parallel_ranks_draw_from_streams_of_their_own() -> None:
    def seed(rank: int, given: int | None) -> int:
        ranks = SimpleNamespace(data_parallel_index=rank)
        told = SimpleNamespace(seed=given)
        return stream_seed(SimpleNamespace(model_config=told, parallel_config=ranks))

    assert seed(0, 7) == 7 and seed(0, None) == 0
    assert len({seed(rank, given) for rank in range(3) for given in (0, 1, 7)}) == 9
