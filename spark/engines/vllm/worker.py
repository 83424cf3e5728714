"""The worker's part: a model runner that samples, scores and takes branches."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from spark.engines.vllm.options import Options
from spark_kernels import _load
from spark_kernels.score.op import COMPILED

logger = init_logger(f"vllm.{__name__}")


def install(runner: Any, chosen: Options) -> None:
    """Turn vLLM's model runner, whose model is not loaded yet, into one that branches."""
    if runner.vllm_config.use_v2_model_runner:
        from spark.engines.vllm.runner_v2 import BranchingV2 as Branching
    else:
        from spark.engines.vllm.runner_v1 import BranchingV1 as Branching
    kind = runner.device.type
    if kind not in COMPILED:
        why = _load.library(kind) or "the built library lacks it"
        logger.warning("spark: score runs as its torch reference: %s", why)
    own = type(runner)
    runner.__class__ = type(f"Spark{own.__name__}", (Branching, own), {})
    runner.branching = chosen
