"""Branching inside SGLang's own server: its adapter to the port, its routes, its launcher."""

from spark.serve.sglang.launch import launch

__all__ = ["launch"]
