"""Rollouts: one task becomes one tree."""

from spark.rollout.chat import Chat
from spark.rollout.config import RolloutConfig
from spark.rollout.driver import Event, RolloutError, rollout
from spark.rollout.store import StoreError, load_trees, save_tree

__all__ = [
    "Chat",
    "Event",
    "RolloutConfig",
    "RolloutError",
    "StoreError",
    "load_trees",
    "rollout",
    "save_tree",
]
