"""Measurements against named baselines: `python -m benchmarks`."""
