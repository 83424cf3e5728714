"""Branching inside vLLM's own server: its adapter to the port, its routes, its launcher."""

from spark.serve.vllm.launch import launch

__all__ = ["launch"]
