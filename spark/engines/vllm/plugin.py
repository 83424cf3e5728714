"""Entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes."""

from __future__ import annotations

import functools
import os
from importlib.metadata import entry_points
from typing import Any

from spark.engines.vllm.hooks import around
from spark.engines.vllm.options import add_flags, from_flags, options

NAME = "spark"
ENDINGS = ("finish_weight_update", "reload_weights")
"""Calls to vLLM's workers after which the weights are others."""
KINDS = ("general", "io_processor", "platform", "stat_logger")
GROUPS = tuple(f"vllm.{kind}_plugins" for kind in KINDS)


def register() -> None:
    """Add the flags, and what an engine with `--branching spark` needs in this process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from spark.engines.vllm import frontend

    @around(EngineArgs, "add_cli_args")
    def add_cli_args(original: Any, parser: Any) -> Any:
        parser = original(parser)
        add_flags(parser)
        return parser

    @around(EngineArgs, "from_cli_args")
    def from_cli_args(original: Any, cls: Any, args: Any) -> Any:
        if flags := from_flags(args):
            if (getattr(args, "api_server_count", None) or 1) > 1:
                raise ValueError(
                    "--branching spark keeps trees in one API server: give --api-server-count 1"
                )
            args.additional_config = {**(args.additional_config or {}), **flags}
            allow_routes()
        return original(cls, args)

    @around(EngineArgs, "create_engine_config")
    def create_engine_config(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        config = original(self, *args, **kwargs)
        if options(config).on:
            configure(config)
            frontend.read_scores()
        return config

    @around(WorkerWrapperBase, "init_device")
    def init_device(original: Any, self: Any) -> None:
        original(self)
        if (chosen := options(self.vllm_config)).on:
            from spark.engines.vllm.worker import install

            install(self.worker.model_runner, chosen)

    @around(EngineCore, "collective_rpc")
    def collective_rpc(original: Any, self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        answers = original(self, method, *args, **kwargs)
        if method in ENDINGS and options(self.vllm_config).on:
            from spark.engines.vllm.transfer import forget_kv

            forget_kv(self)
        return answers

    add_transfer()
    frontend.check_requests()


@functools.cache
def add_transfer() -> None:
    """Add `spark` to what `--weight-transfer-config` may name."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(
        NAME, "spark.engines.vllm.transfer", "FolderTransfer"
    )


def configure(config: Any) -> None:
    """Choose the scheduler, and how weights come. Raises ValueError for what does not go together.

    Weights come out of a folder unless the user names another way.
    """
    from vllm.config import WeightTransferConfig

    from spark.engines.vllm.refused import refuse

    refuse(config)
    kind = "SparkAsyncScheduler" if config.scheduler_config.async_scheduling else "SparkScheduler"
    config.scheduler_config.scheduler_cls = f"spark.engines.vllm.scheduler.{kind}"
    if config.weight_transfer_config is None:
        config.weight_transfer_config = WeightTransferConfig(backend=NAME)


def allow_routes() -> None:
    """Name our routes in VLLM_PLUGINS, without which vLLM loads none, and all it loads anyway."""
    if "VLLM_PLUGINS" not in os.environ:
        found = {point.name for group in GROUPS for point in entry_points(group=group)}
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(found | {NAME}))
    elif NAME not in os.environ["VLLM_PLUGINS"].split(","):
        os.environ["VLLM_PLUGINS"] += f",{NAME}"
