"""Seeds that depend on what they are for, never on when they are drawn."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**62) that is a hash of `parts` (integers, strings, tuples of them)."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def unit_float(*parts: object) -> float:
    """Return a uniform number in [0, 1) that is a hash of `parts`."""
    return derive_seed(*parts) / 2**62
