"""New weights for SGLang out of memory, by its own calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from torch import Tensor

from spark.engines.weights import whole
from spark.serve.routes import refusal
from spark.serve.weights import Shapes, receive_state

if TYPE_CHECKING:
    from spark.serve.sglang.backend import SGLangBackend


class Weights:
    """The weights of one SGLang, seen from the process of its tokenizer manager."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._shapes = Shapes(manager.model_config.hf_config)

    async def load(self, state: Mapping[str, Tensor], version: int) -> None:
        """Replace them; running requests pause, and go on with the new ones.

        All KV of the old ones is dropped, so that what goes on is computed again.

        Raises ValueError where they are not this model's.
        """
        from sglang.srt.managers.io_struct import (
            ContinueGenerationReqInput,
            PauseGenerationReqInput,
            UpdateWeightsFromTensorReqInput,
        )
        from sglang.srt.utils import MultiprocessingSerializer

        manager, args = self._manager, self._manager.server_args
        if args.dp_size != 1:
            raise ValueError(
                "SGLang takes weights from memory with --dp-size 1 only: give a folder that it "
                "can read"
            )
        self._shapes.check({name: tensor.shape for name, tensor in state.items()})
        named = list(whole(state).items())
        asked = UpdateWeightsFromTensorReqInput(
            # a rank takes the shared memory it is told of away
            serialized_named_tensors=[
                MultiprocessingSerializer.serialize(named) for _ in range(args.tp_size)
            ],
            weight_version=str(version),
        )
        await manager.pause_generation(PauseGenerationReqInput(mode="retract"))
        try:
            async with Update(manager):
                taken, message = await manager.update_weights_from_tensor(asked)
        finally:
            await manager.continue_generation(ContinueGenerationReqInput())
        if not taken:
            raise ValueError(f"SGLang did not take the weights: {message}")


def weight_route(backend: SGLangBackend) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of POST /v1/weights; see docs/serving.md."""

    async def weights(http: Request) -> Response:
        try:
            state, version = await receive_state(http)
            await backend.update_weights(state, version)
        except Exception as error:
            # a file that cannot be read, tensors that do not fit
            return refusal(error)
        return JSONResponse({"weight_version": version, "engine": dict(backend.stats())})

    return weights


class Update:
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
