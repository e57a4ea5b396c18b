"""How much may wait and run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings


class Limits:
    """Counts what is being answered.

    Args:
        settings: the most that may be.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.requests, self.audio_seconds = 0, 0.0

    @contextmanager
    def admitted(self, audio_seconds: float = 0.0) -> Iterator[None]:
        """One more request, for as long as it takes.

        Raises:
            ApiError: 429 with the seconds after which there will probably be room.
        """
        if self.requests >= self.settings.max_requests:
            raise ApiError(429, f"{self.requests} requests are being answered", code="queue_full", retry_after=1.0)
        if self.requests and self.audio_seconds + audio_seconds > self.settings.max_audio_seconds:
            raise ApiError(429, "too many recordings are being answered", code="queue_full", retry_after=1.0)
        self.requests += 1
        self.audio_seconds += audio_seconds
        try:
            yield
        finally:
            self.requests -= 1
            self.audio_seconds -= audio_seconds
