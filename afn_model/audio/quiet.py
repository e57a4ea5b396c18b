"""Where to cut a recording that is longer than a model's context: in pauses."""

from __future__ import annotations

from torch import Tensor

from afn_model.audio.frames import HOP, SAMPLE_RATE

QUIET = 10 * HOP  # samples: 100 ms


def cut_points(pcm: Tensor, longest_seconds: float, search_seconds: float) -> list[int]:
    """Cuts a recording into pieces of at most ``longest_seconds``, each where it is quietest near its end.

    A cut is the middle of the 100 ms with the least power, of those that begin every 10 ms within the last
    ``search_seconds`` that a piece may have; the latest where several have the same. No piece is shorter than 50 ms.

    Args:
        pcm: [n] samples at 16 kHz, int16 or float.
        longest_seconds: of a piece.
        search_seconds: how much of a piece's end a pause is looked for in, from 0.1 to ``longest_seconds``.

    Returns:
        Offsets c₁ < c₂ < … in samples; the pieces are [0, c₁), [c₁, c₂), … [cₖ, n). None for a recording that is short
        enough.

    Raises:
        ValueError: another shape, or seconds out of range.
    """
    if pcm.dim() != 1:
        raise ValueError(f"a recording to cut must be [n] samples, got {list(pcm.shape)}")
    if not QUIET / SAMPLE_RATE <= search_seconds <= longest_seconds:
        raise ValueError(
            f"search_seconds must be from {QUIET / SAMPLE_RATE:g} to longest_seconds, got {search_seconds:g} and"
            f" {longest_seconds:g}"
        )
    if len(pcm) <= longest_seconds * SAMPLE_RATE:
        return []
    longest, search = int(longest_seconds * SAMPLE_RATE), int(search_seconds * SAMPLE_RATE)
    cuts, start = [], 0
    while len(pcm) - start > longest:
        first = start + longest - search
        start = first + quietest(pcm[first : start + longest]) + QUIET // 2
        cuts.append(start)
    return cuts


def quietest(pcm: Tensor) -> int:
    """Where the quietest 100 ms of samples [n] begin, in steps of 10 ms; the last of them. n is at least 1,600."""
    power = pcm[: len(pcm) // HOP * HOP].double().square().view(-1, HOP).sum(1).unfold(0, QUIET // HOP, 1).sum(1)
    return int((power == power.min()).nonzero()[-1]) * HOP
