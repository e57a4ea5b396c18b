"""64-bit hashes of whole numbers: what order, sampling and initialisation draw their numbers from."""

from __future__ import annotations

MASK = 2**64 - 1


def mix(x: int) -> int:
    """A 64-bit hash whose every output bit depends on every input bit (the finaliser of splitmix64)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key(*parts: int) -> int:
    """One 64-bit key from several numbers, whose order matters."""
    found = 0
    for part in parts:
        found = mix(found ^ (part & MASK))
    return found
