"""A recording that a client has sent, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from afn_model.audio.digests import DecodedRecording
from afn_model.audio.frames import SAMPLE_RATE, window_samples
from afn_model.audio.recording import Audio
from afn_model.infer.time_checks import Loudness


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples, and what they are known by.

    Args:
        id: sha256 of the file's bytes, in hexadecimal; of a part of it, with ``@START-END`` behind it.
        pcm: [n] at 16 kHz, of the processor's dtype.
        digests: ``window_digest`` of each of its windows; hashed when first needed, if none.
        problems: what is wrong with the file, which was used as far as it plays.
    """

    id: str
    pcm: Tensor
    digests: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = ()

    @staticmethod
    def part_id(id: str, start: float | None, end: float | None) -> str:
        """What a part is known by, from ``start`` to ``end`` seconds; the whole, if both are None."""
        if start is None and end is None:
            return id
        return f"{id}@{start or 0!r}-{'' if end is None else repr(end)}"

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    @property
    def windows(self) -> int:
        """Of the encoder."""
        return len(window_samples(len(self.pcm)))

    @cached_property
    def audio(self) -> Audio:
        """The recording in a conversation; the engine reads no sample of windows that it knows."""
        return Audio(DecodedRecording(self.pcm, self.digests or None))

    @cached_property
    def loudness(self) -> Loudness:
        """What its stated times are checked by."""
        return Loudness(self.pcm)
