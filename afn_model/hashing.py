"""64-bit hashes of numbers and text: the seeds of order, sampling and initialisation."""

from __future__ import annotations

import hashlib

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15  # from one state of SplitMix64 to the next
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # factors of its draw


def mix(x: int) -> int:
    """A 64-bit hash whose every output bit depends on every input bit (a draw of SplitMix64)."""
    x = (x + GAMMA) & MASK
    x = ((x ^ (x >> 30)) * FIRST) & MASK
    x = ((x ^ (x >> 27)) * SECOND) & MASK
    return x ^ (x >> 31)


def key(*parts: int) -> int:
    """One 64-bit key from several numbers, whose order matters."""
    hashed = 0
    for part in parts:
        hashed = mix(hashed ^ (part & MASK))
    return hashed


def text_key(text: str | bytes) -> int:
    """A 64-bit key from text, the same in every process (``hash`` is not)."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
