"""Recordings from bytes that nobody vouches for: decoded in processes of their own, under limits."""

from __future__ import annotations

import asyncio
import hashlib

import torch

from afn_model.audio.decode import load_audio
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.settings import Settings


class Intake:
    """Decodes recordings.

    Args:
        settings: limits.
        dtype: of samples.
    """

    def __init__(self, settings: Settings, dtype: torch.dtype = torch.float32):
        self.settings, self.dtype = settings, dtype

    async def start(self) -> None:
        """Starts the processes."""

    async def stop(self) -> None:
        """Ends the processes."""

    async def decode(
        self,
        data: bytes,
        *,
        start: float | None = None,
        end: float | None = None,
        max_seconds: float | None = None,
        param: str | None = None,
    ) -> Recording:
        """A recording from the bytes of a file.

        Args:
            data: of the file, whatever its name says it is.
            start, end: seconds; the whole recording if None.
            max_seconds: the longest; that of the settings if None.
            param: what errors call it, such as ``messages[0].content[1]``.

        Raises:
            ApiError: 413 longer than allowed, 415 not audio that is read, 422 it cannot be decoded, 503 no time for it.
        """
        longest = self.settings.max_seconds if max_seconds is None else max_seconds
        options = {"start": start, "end": end, "strict": True, "max_seconds": longest, "dtype": self.dtype}
        try:
            pcm = await asyncio.to_thread(load_audio, data, **options, name="the recording")
        except ValueError as error:
            raise ApiError(422, str(error), param=param) from None
        part = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else f'{end:g}'}"
        return Recording(hashlib.sha256(data).hexdigest() + part, pcm)
