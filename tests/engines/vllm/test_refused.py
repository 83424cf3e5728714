"""Settings of vLLM's that do not go with branching are refused by name, in all its releases."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from spark.engines.vllm.refused import refuse

pytestmark = pytest.mark.vllm

USUAL = {
    "speculative_config": None,
    "cache_config.enable_prefix_caching": True,
    "scheduler_config.scheduler_cls": None,
    "parallel_config.pipeline_parallel_size": 1,
    "model_config.runner_type": "generate",
}


def config(**changed: object) -> SimpleNamespace:
    """Return a VllmConfig with the fields of USUAL, which every release has, and `changed`."""
    made = SimpleNamespace()
    for path, value in (USUAL | changed).items():
        at = made
        *parents, name = path.split(".")
        for parent in parents:
            at.__dict__.setdefault(parent, SimpleNamespace())
            at = getattr(at, parent)
        setattr(at, name, value)
    return made


def test_a_usual_config_is_taken() -> None:
    refuse(config())


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism: use tensor"),
        ("model_config.runner_type", "pooling", "a pooling model"),
        ("aux_output_config.enabled", True, "--enable-return-routed-experts: leave it out"),
        ("model_config.enable_return_routed_experts", True, "--enable-return-routed-experts"),
        ("parallel_config.enable_batch_sharded_sampling", True, "--enable-batch-sharded-sampling"),
        ("model_config.disable_cascade_attn", False, "cascade attention: leave --no-disable"),
        ("model_config.enable_trace_replay", True, "--enable-trace-replay: leave it out"),
        ("model_config.return_sampling_mask", True, "--return-sampling-mask: leave it out"),
        ("watermark_config", object(), "a watermark: leave --watermark-config out"),
    ],
)
def test_refused(field: str, value: object, told: str) -> None:
    with pytest.raises(ValueError, match=f"--branching spark does not work with {told}"):
        refuse(config(**{field: value}))
