"""Checks that need no GPU: `python -m tools.resources`."""
