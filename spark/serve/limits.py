"""What a server takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True, frozen=True)
class Limits:
    """What a server takes on. Every field is a flag of `spark serve`."""

    max_leaves: int = 64
    """Leaf budget `n` of one request at most."""
    max_running_leaves: int = 512
    """Leaf budgets of all requests in progress at most; beyond it requests get 429."""
    max_trees: int = 1024
    """Trees kept for continuation or in progress; idle ones make room, oldest first."""
    idle_seconds: float = 300.0
    """A tree that nobody continues for so long is dropped."""
    max_body_bytes: int = 32 * 2**20
    """Largest request body."""

    def __post_init__(self) -> None:
        for name in ("max_leaves", "max_running_leaves", "max_trees", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.idle_seconds <= 0:
            raise ValueError(f"idle_seconds={self.idle_seconds} must be > 0")
