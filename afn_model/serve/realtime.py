"""``/v1/realtime``: transcription while a recording comes. The wire; ``realtime_session`` is what is said on it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from afn_model.serve.errors import ApiError
from afn_model.serve.realtime_session import RealtimeSession, SessionOver
from afn_model.serve.server import Server

UNREAD = 4 << 20  # characters of events that wait to be dealt with; no more is read then
router = APIRouter()
log = logging.getLogger("afn.serve")


class Inbox:
    """Events that have come, up to ``UNREAD`` characters and one event."""

    def __init__(self):
        self._events: deque[str] = deque()
        self._size, self._changed = 0, asyncio.Condition()

    async def put(self, text: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < UNREAD)
            self._events.append(text)
            self._size += len(text)
            self._changed.notify_all()

    async def get(self) -> str:
        async with self._changed:
            await self._changed.wait_for(lambda: self._events)
            text = self._events.popleft()
            self._size -= len(text)
            self._changed.notify_all()
            return text


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    server: Server = socket.app.state.server
    await socket.accept("realtime" if "realtime" in socket.scope["subprotocols"] else None)
    writing = asyncio.Lock()

    async def send(event: dict[str, Any]) -> None:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):  # whoever reads notices that nobody listens
            async with writing:
                await socket.send_text(json.dumps(event, ensure_ascii=False))

    session, code, reason = RealtimeSession(server, send), 1000, "client"
    metrics = server.metrics
    try:
        if server.limits.sessions >= server.settings.max_sessions:
            code, reason = 1013, "refused"
            metrics.rejected("sessions")
            what = f"{server.limits.sessions} sessions are open here: try again later"
            await session.error(ApiError(429, what, code="too_many_sessions"))
            return
        server.limits.sessions += 1
        metrics.sessions.inc()
        try:
            code, reason = await _converse(socket, session, server.settings.idle_seconds)
        finally:
            server.limits.sessions -= 1
            metrics.sessions.dec()
    finally:
        metrics.closed[reason].inc()
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.close(code)


async def _converse(socket: WebSocket, session: RealtimeSession, idle: float) -> tuple[int, str]:
    """Deals with events until the session ends; the close frame's code and the reason."""
    inbox = Inbox()

    async def read() -> None:
        while True:
            try:
                text = await asyncio.wait_for(_received(socket), idle)
            except asyncio.TimeoutError:
                if session.answers:
                    continue
                what = f"nothing has come for {idle:g} s"
                raise SessionOver(1001, "idle", ApiError(400, what, code="session_idle")) from None
            await inbox.put(text)

    async def handle() -> None:
        await session.created()
        _check(socket, session.server)
        while True:
            await session.handle(await inbox.get())

    tasks = [asyncio.create_task(read()), asyncio.create_task(handle())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()
    over = next((one for one in ended if isinstance(one, SessionOver)), None)
    if over is not None:
        await session.error(over.error)
        return over.code, over.reason
    for error in ended:
        if not isinstance(error, (asyncio.CancelledError, WebSocketDisconnect)) and isinstance(error, BaseException):
            log.error("a realtime session failed", exc_info=error)
            await session.error(ApiError(500, "the session has failed", code="internal_error"))
            return 1011, "error"
    return 1000, "client"


async def _received(socket: WebSocket) -> str:
    """The next event.

    Raises:
        WebSocketDisconnect: there is none.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code") or 1005)
    text = message.get("text")
    return (message.get("bytes") or b"").decode(errors="replace") if text is None else text


def _check(socket: WebSocket, server: Server) -> None:
    """What the address asks for.

    Raises:
        SessionOver: it is not here.
    """
    asked = socket.query_params
    try:
        server.check_model(asked.get("model"))
        if asked.get("intent", "transcription") != "transcription":
            what = f"intent is {asked['intent']!r:.80}; expected is 'transcription'"
            raise ApiError(400, what, param="intent", code="invalid_value")
    except ApiError as error:
        raise SessionOver(1008, "refused", error) from None
