"""The block copy by `kv_fork` equals vLLM's, on every layout; what it cannot do vLLM does."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.vllm

BLOCKS = 20


def contiguous() -> list[torch.Tensor]:
    return [torch.randn(BLOCKS, 2, 32, 24) for _ in range(3)]


def permuted() -> list[torch.Tensor]:
    """Heads outside, tokens inside, as some GPU kernels want it; blocks stay outermost."""
    return [torch.randn(BLOCKS, 2, 32, 24).permute(0, 2, 1, 3) for _ in range(3)]


def split() -> list[torch.Tensor]:
    """Two kernel blocks to a scheduler block, half precision."""
    return [torch.randn(2 * BLOCKS, 2, 16, 24).bfloat16() for _ in range(3)]


def shared() -> list[torch.Tensor]:
    first, second = contiguous()[:2]
    return [first, second, first]


def one_storage() -> list[torch.Tensor]:
    """Layer after layer in one storage, as vLLM on a CPU has it."""
    return list(torch.randn(3, 2 * BLOCKS, 2, 16, 24))


def blocks_of_all_layers() -> list[torch.Tensor]:
    """A block of one layer is followed by the same block of the next."""
    return list(torch.randn(BLOCKS, 3, 2, 32, 24).unbind(1))


def keys_apart() -> list[torch.Tensor]:
    """K of all blocks before V of all: block after block it is not."""
    return list(torch.randn(3, 2, BLOCKS, 32, 12).transpose(1, 2))


LAYOUTS = [contiguous, permuted, split, shared, one_storage, blocks_of_all_layers, keys_apart]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pairs", [[(1, 9)], [(1, 9), (4, 2), (1, 3)], [(1, 2), (2, 3)]])
def test_equals_vllms_copy(layout, pairs: list[tuple[int, int]]) -> None:
    from vllm.v1.worker.utils import copy_kv_cache_blocks_inplace

    from spark.engines.vllm.copies import whole_blocks, with_kv_fork

    handed = []

    def original(*args) -> None:
        handed.append(args)
        copy_kv_cache_blocks_inplace(*args)

    torch.manual_seed(1)
    ours = layout()
    torch.manual_seed(1)
    theirs = layout()
    copy_kv_cache_blocks_inplace(theirs, BLOCKS, pairs)
    with_kv_fork(original)(ours, BLOCKS, pairs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    chained = (2, 3) in pairs
    assert bool(handed) == (layout is keys_apart or chained)
    assert bool(whole_blocks(ours, BLOCKS)) == (layout is not keys_apart)


def test_lists_of_states_are_left_to_vllm() -> None:
    """Recurrent layers of vLLM 0.26 keep several tensors."""
    from spark.engines.vllm.copies import with_kv_fork

    handed = []
    caches = [*contiguous(), [torch.randn(BLOCKS, 3), torch.randn(BLOCKS, 5)]]
    with_kv_fork(lambda *args: handed.append(args))(caches, BLOCKS, [(1, 9)])
    assert handed == [(caches, BLOCKS, [(1, 9)])]


def test_the_op_copies_the_blocks_of_the_engine(engines) -> None:
    from spark.engines.vllm.copies import whole_blocks

    harness = engines()
    runner = harness.core.model_executor.driver_worker.worker.model_runner
    blocks = whole_blocks(runner.kv_caches, harness.scheduler.kv_cache_config.num_blocks)
    assert len(blocks) == runner.model_config.hf_config.num_hidden_layers
