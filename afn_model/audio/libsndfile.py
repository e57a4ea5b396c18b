"""libsndfile's decoders, for the formats of laboratories and samplers that FFmpeg does not read (mat, htk, sd2, xi)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

import torch

from afn_model.audio.ffmpeg import BLOCK, SLACK, PcmBlock, mix_down


class SoundFileAudio:
    """A file that libsndfile has opened; what it offers is what ``AudioFile`` does.

    Args:
        data: a path or the bytes of a file.

    Raises:
        ValueError: not audio that libsndfile reads.
    """

    damaged, torn, begin, counts, slack = 0, False, 0, True, SLACK

    def __init__(self, data: str | bytes):
        import soundfile

        self._error = soundfile.SoundFileError
        try:
            self._file = _sequential_file()(data if isinstance(data, str) else io.BytesIO(data))
        except (soundfile.SoundFileError, TypeError) as error:
            raise ValueError(_reason(error)) from None
        self.rate, self.format, self.channels = self._file.samplerate, self._file.format.lower(), self._file.channels
        length = self._file.frames
        self.promised = length / self.rate if length < 1 << 62 else None
        self.span = self.stamped = self.decoded = 0.0

    def close(self) -> None:
        self._file.close()

    def seconds(self) -> float:
        if self.promised is None:
            raise ValueError("its header does not say how long it is")
        return self.promised

    def blocks(self, start: float = 0.0) -> Iterator[PcmBlock]:
        """Blocks to the end, from the beginning: seeking is what few of these formats do well."""
        size = max(1, BLOCK // self._file.channels)
        try:
            while len(block := self._file.read(size, dtype="float32", always_2d=True)):
                self.span = self.stamped = self.decoded = self.decoded + len(block) / self.rate
                yield mix_down(torch.from_numpy(block).T, self.rate)
        except self._error as error:
            raise ValueError(f"damaged or truncated ({_reason(error)})") from None


@lru_cache(maxsize=1)
def _sequential_file():
    import soundfile

    class SequentialFile(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False  # or every read ends in a seek, which some formats cannot do

    return SequentialFile


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "error_string", error)).splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Error : ").rstrip(".")
