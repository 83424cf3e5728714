"""New weights: vLLM's weight transfer out of a folder, and no KV of the old ones afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)


@dataclass
class NoConnection(WeightTransferInitInfo):
    """There is nothing to set up."""


@dataclass
class Folder(WeightTransferUpdateInfo):
    """What `update_weights` is told."""

    folder: str
    """Holds *.safetensors with the names of a checkpoint: on a disk, or in memory (/dev/shm)."""


class FolderTransfer(WeightTransferEngine[NoConnection, Folder]):
    """Every worker reads the same files, and takes its shard of them."""

    init_info_cls = NoConnection
    update_info_cls = Folder

    def init_transfer_engine(self, init_info: NoConnection) -> None:
        """Do nothing: there is no connection to set up."""

    def start_weight_update(self) -> None:
        """Let vLLM prepare its layers for weights as a checkpoint has them."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load all files of the folder, which needs no wait for a device.

        Raises ValueError for a folder without any.
        """
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Folder) -> None:
        """Load all files of the folder. Raises ValueError where there is none.

        What does not fit leaves the weights partly new, and the model able to go on.
        """
        files = sorted(Path(update_info.folder).glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"folder={update_info.folder!r} has no *.safetensors: write them first"
            )
        try:
            self.model.load_weights(tensors(files))
        except Exception:
            self._abandon()
            raise

    def finish_weight_update(self) -> None:
        """Let vLLM process what its layers have got."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Do nothing: there is no connection to end."""

    def _abandon(self) -> None:
        """Give layers that wait for the rest of their weights their old ones back."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
        self.finish_weight_update()


def tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all files, one at a time."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                yield name, file.get_tensor(name)


def forget_kv(core: Any) -> None:
    """Drop the KV of the weights that `core`, vLLM's engine core, had before.

    Requests that wait for the new weights in the middle of their text keep theirs, as vLLM has it.
    """
    if core.reset_prefix_cache():
        core.model_executor.collective_rpc(wipe)


def wipe(worker: Any) -> None:
    """Zero the KV memory of a worker, of which no request holds a block.

    A block is written token by token, and attention multiplies what it has not reached by nought:
    a value of the old weights that is not finite would reach whoever gets its block next.
    """
    for cache in worker.model_runner.kv_caches:
        # layers that keep a state have several tensors
        for part in cache if isinstance(cache, list | tuple) else (cache,):
            part.zero_()
