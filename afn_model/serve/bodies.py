"""Bodies of requests while they come: how large one may be, all together may be, and how slowly one may come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive

from afn_model.serve.errors import ApiError
from afn_model.serve.intake import within
from afn_model.serve.settings import Settings

PACE = 32 << 10  # bytes of a body that give it one more second to come


class Bodies:
    """Counts the bytes of all bodies that are held, each until its request has been answered.

    Args:
        settings: limits.
        clock: seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
        self.settings, self.clock, self.bytes = settings, clock, 0

    @contextmanager
    def read(self, receive: Receive, length: str) -> Iterator[Receive]:
        """What a request receives, under limits.

        Args:
            receive: of ASGI.
            length: what the request says of its body, "0" if nothing.

        Raises:
            ApiError: 413 one is too large, 429 all are, and while it is received also 408 it comes too slowly.
        """
        if not length.isdecimal() or int(length) > self.settings.max_body_bytes:
            raise self._too_large()
        self._room_for(int(length))
        body = Body(self, receive)
        try:
            yield body.receive
        finally:
            self.bytes -= body.taken

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request may have {self.settings.max_body_bytes:,} bytes", code="too_large")

    def _room_for(self, more: int) -> None:
        if self.bytes + more > self.settings.max_waiting_bytes:
            what = f"requests of {self.bytes:,} bytes are being read or answered; try again later"
            raise ApiError(429, what, code="queue_full", retry_after=5.0)


class Body:
    """The body of one request. It may take ``Settings.body_seconds``, and a second for each ``PACE`` bytes that came.

    Args:
        all: of the server.
        receive: of ASGI.
    """

    def __init__(self, all: Bodies, receive: Receive):
        self.all, self.taken, self.more = all, 0, True
        self._receive, self._began = receive, all.clock()

    async def receive(self) -> Message:
        if not self.more:
            return await self._receive()
        settings = self.all.settings
        left = self._began + settings.body_seconds + self.taken / PACE - self.all.clock()
        try:
            if left <= 0:
                raise asyncio.TimeoutError
            message = await within(left, self._receive())
        except asyncio.TimeoutError:
            raise ApiError(408, "the body of this request comes too slowly", code="too_slow") from None
        self.more = message.get("more_body", False)
        size = len(message.get("body", b""))
        if self.taken + size > settings.max_body_bytes:
            raise self.all._too_large()
        self.all._room_for(size)
        self.taken += size
        self.all.bytes += size
        return message
