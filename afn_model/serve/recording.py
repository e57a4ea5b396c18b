"""A recording that a client has sent, decoded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples, and what they are known by.

    Args:
        id: sha256 of the file's bytes, in hexadecimal; of a part of it, with ``@START-END`` behind it.
        pcm: [n] at 16 kHz, of the processor's dtype.
        digests: ``window_digest`` of each of its windows.
        problems: what is wrong with the file, which was used as far as it plays.
    """

    id: str
    pcm: Tensor
    digests: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE
