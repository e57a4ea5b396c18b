"""Ids that depend on content alone: no counter, no path, no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from afn_model.checks import shown
from afn_model.curate.stage import NotReady

DIGITS = 32  # hexadecimal, of an id: 128 bits


def digest(data: bytes) -> str:
    """BLAKE3 of bytes.

    Raises:
        NotReady: blake3 is not installed.
    """
    try:
        import blake3  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotReady("curation hashes with blake3: pip install 'afn-kernels[curate]'") from None
    return blake3.blake3(data, max_threads=blake3.blake3.AUTO).hexdigest()[:DIGITS]


def of(*parts: Any) -> str:
    """The id of anything that JSON can say, whatever the order of its keys.

    Raises:
        ValueError: JSON cannot say it.
    """
    try:
        told = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        raise ValueError(f"no JSON: {shown(parts)}") from None
    return digest(told.encode("utf-8", "surrogatepass"))


def segment_id(source_id: str, start: float, end: float) -> str:
    """Of a part of a recording, to the millisecond."""
    return of("segment", source_id, round(1000 * start), round(1000 * end))


def number(*parts: Any) -> int:
    """A number of 52 bits that depends on what is named alone, for what is drawn by hash."""
    return int(of(*parts)[:13], 16)


def fraction(*parts: Any) -> float:
    """The same, from 0 up to below 1."""
    return number(*parts) / 16**13


def pick(options: Sequence[Any], *parts: Any) -> Any:
    """One of several."""
    return options[number(*parts) % len(options)]
