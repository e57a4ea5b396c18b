"""Recordings that are longer than a model takes, as pieces that begin and end where it is quiet."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.quiet import cut_points
from afn_model.audio.recording import Audio, load, measured_seconds
from afn_model.storage import StorageError

LONGEST = 7 * 86_400.0  # seconds of a recording whose header does not say how long it is
LEFT = 1.0  # seconds that a cut leaves behind it at least: a piece without a token cannot be used
SEARCHED = 30.0  # seconds at the end of a piece in which the quietest point is looked for, at most


def seconds_of(audio: Audio) -> float:
    """Seconds of a recording or of the part that is wanted, by its header, or decoded where that does not say.

    Raises:
        ValueError: no audio, or a start outside of it.
    """
    try:
        return measured_seconds(audio)
    except StorageError:
        raise
    except ValueError:
        return len(_stretch(audio, LONGEST)) / SAMPLE_RATE


def cut(audio: Audio, longest: float, seconds: float | None = None) -> list[tuple[float, float]]:
    """(start, end) in seconds of the pieces of a recording, one after the other, without gap or overlap.

    A recording that is longer is decoded, piece by piece, and cut at the quietest point of the last 30 s (of the last
    fifth of shorter pieces) that a piece may have; other ones are only measured.

    Args:
        audio: that can be read more than once.
        longest: seconds that a piece may have.
        seconds: of the recording, if known.

    Raises:
        ValueError: no audio, or a start outside of it.
    """
    start = audio.start or 0.0
    end, pieces = start + (seconds_of(audio) if seconds is None else seconds), []
    search = min(SEARCHED, longest / 5)
    while end - start > longest:
        reach = min(longest, end - start - min(LEFT, longest / 2))
        pcm = _stretch(replace(audio, start=start), reach + search)
        if len(pcm) <= round(reach * SAMPLE_RATE):  # the header says more than there is
            end = start + len(pcm) / SAMPLE_RATE
            break
        first = cut_points(pcm, reach, search)[0]
        pieces.append((start, start + first / SAMPLE_RATE))
        start += first / SAMPLE_RATE
    return [*pieces, (start, end)]


def cut_samples(pcm: Tensor, longest: float) -> list[tuple[int, int]]:
    """[start, end) of the pieces of samples [n] at 16 kHz, where ``cut`` would cut a file of them.

    Args:
        pcm: [n], int16 or float.
        longest: seconds that a piece may have.
    """
    start, pieces, search = 0, list[tuple[int, int]](), min(SEARCHED, longest / 5)
    while (left := (len(pcm) - start) / SAMPLE_RATE) > longest:
        reach = min(longest, left - min(LEFT, longest / 2))
        first = cut_points(pcm[start : start + round((reach + search) * SAMPLE_RATE)], reach, search)[0]
        pieces.append((start, start + first))
        start += first
    return [*pieces, (start, len(pcm))]


def _stretch(audio: Audio, seconds: float) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the piece is heard
        return load(audio, max_seconds=seconds)
