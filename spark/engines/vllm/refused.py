"""What of vLLM's does not go together with branching: refused before the engine starts."""

from __future__ import annotations

from typing import Any


def refuse(config: Any) -> None:
    """Raise ValueError for what a VllmConfig asks for and `--branching spark` cannot do.

    Fields that not every supported release has count as off where they are missing.
    """
    cache, parallel, model = config.cache_config, config.parallel_config, config.model_config
    aux = getattr(config, "aux_output_config", None)
    for wrong, remedy in (
        (config.speculative_config is not None, "speculative decoding: leave its flags out"),
        (not cache.enable_prefix_caching, "prefix caching off: switch it on"),
        (
            config.scheduler_config.scheduler_cls is not None,
            "another --scheduler-cls: leave it out",
        ),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism: use tensor"),
        (model.runner_type != "generate", "a pooling model: it generates nothing"),
        (
            getattr(aux, "enabled", False) or getattr(model, "enable_return_routed_experts", False),
            "--enable-return-routed-experts: leave it out, those of shared tokens are not known",
        ),
        (
            getattr(parallel, "enable_batch_sharded_sampling", False),
            "--enable-batch-sharded-sampling: leave it out",
        ),
        (
            # a held parent's references would make a prefix look common to the whole batch
            not getattr(model, "disable_cascade_attn", True),
            "cascade attention: leave --no-disable-cascade-attn out",
        ),
        (
            getattr(model, "enable_trace_replay", False),
            "--enable-trace-replay: leave it out, the scores are those of drawn tokens",
        ),
        (
            getattr(model, "return_sampling_mask", False),
            "--return-sampling-mask: leave it out, those of shared tokens are not known",
        ),
        (
            getattr(config, "watermark_config", None) is not None,
            "a watermark: leave --watermark-config out",
        ),
    ):
        if wrong:
            raise ValueError(f"--branching spark does not work with {remedy}")
