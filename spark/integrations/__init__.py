"""Adapters for other trainers; each imports its package only when it is used."""
