"""New weights for SGLang out of memory, by its own calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


async def load(manager: Any, state: Mapping[str, Tensor], version: int) -> None:
    """Replace the weights; running requests pause, and go on with the new ones.

    All KV of the old ones is dropped, so that what goes on is computed again.

    Raises ValueError where SGLang does not take them.
    """
    from sglang.srt.managers.io_struct import (
        ContinueGenerationReqInput,
        PauseGenerationReqInput,
        UpdateWeightsFromTensorReqInput,
    )
    from sglang.srt.utils import MultiprocessingSerializer

    args = manager.server_args
    if args.dp_size != 1:
        raise ValueError(
            "SGLang takes weights from memory with --dp-size 1 only: give a folder that it can read"
        )
    # sent as shared memory, which must not become that of the caller's own tensors
    named = [(name, tensor.detach().cpu().clone()) for name, tensor in state.items()]
    asked = UpdateWeightsFromTensorReqInput(
        serialized_named_tensors=[
            MultiprocessingSerializer.serialize(named) for _ in range(args.tp_size)
        ],
        weight_version=str(version),
    )
    await manager.pause_generation(PauseGenerationReqInput(mode="retract"))
    try:
        async with Session(manager):
            taken, message = await manager.update_weights_from_tensor(asked)
    finally:
        await manager.continue_generation(ContinueGenerationReqInput())
    if not taken:
        raise ValueError(f"SGLang did not take the weights: {message}")


class Session:
    """What 0.5.21 and later want around an update."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._wanted = hasattr(manager, "begin_weight_update")

    async def __aenter__(self) -> None:
        if self._wanted:
            from sglang.srt.managers.io_struct import BeginWeightUpdateReqInput

            await self._manager.begin_weight_update(BeginWeightUpdateReqInput())

    async def __aexit__(self, *_: object) -> None:
        if self._wanted:
            from sglang.srt.managers.io_struct import EndWeightUpdateReqInput

            await self._manager.end_weight_update(EndWeightUpdateReqInput())
