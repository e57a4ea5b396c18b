"""What a stage of a voice has of a record: samples at the codec's rate, the text's tokens, the seed of its draws."""

from __future__ import annotations

from dataclasses import dataclass

from afn_model.hashing import key
from afn_model.prompt.batch import Prepared


@dataclass
class HeardSpeech(Prepared):
    """``ids`` of the text (none for the codec), int16 clips at the codec's rate: what is said, and then the speaker
    prompt, if any; ``seed`` is of what is drawn of this visit of the record."""

    seed: int = 0


def draw(seed: int, kind: int) -> float:
    """0 to below 1, a function of its arguments."""
    return (key(seed, kind) >> 11) / 2**53
