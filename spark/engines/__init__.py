"""Engines by name, imported only when asked for."""

from spark.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "local": "spark.engines.local:LocalEngine",
        "http": "spark.engines.http:HTTPEngine",
        "sglang": "spark.engines.sglang.client:SGLangEngine",
        "vllm": "spark.engines.vllm.client:VLLMEngine",
    },
)
