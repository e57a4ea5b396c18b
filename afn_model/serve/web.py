"""Connections: uvicorn, with an end to those that say nothing, say it too slowly or do not listen."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from afn_model.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol
else:
    HttpProtocol = AutoHTTPProtocol  # that of httptools, where it is installed

MESSAGE = 8 << 20  # bytes of a WebSocket's
LAST = 5.0  # seconds after the answers have been ended before their tasks are cancelled


class WatchedConnection(HttpProtocol):
    """Aborts a connection that is idle or takes to say what it wants longer than ``header_seconds``, and one whose
    client leaves what waits for it unread for ``write_seconds``.

    What is written fills 64 KiB before a stream waits for its client: no more is held for one that does not read.
    """

    settings = Settings()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.idle_since = self.loop.time()
        self._stalled: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._waiting = self.loop.call_later(self.settings.header_seconds, self._overdue)
        if len(self.connections) > self.settings.max_connections:
            idle = [one for one in self.connections if isinstance(one, WatchedConnection) and one.idle]
            min(idle, key=lambda one: one.idle_since).transport.abort()  # this one is, too

    @property
    def idle(self) -> bool:
        """Whether no request is read or answered: its header has not come yet."""
        return self.cycle is None or self.cycle.response_complete

    def _overdue(self) -> None:
        if self.idle:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle_since = self.loop.time()
        self._waiting.cancel()
        self._waiting = self.loop.call_later(self.settings.header_seconds, self._overdue)

    def handle_websocket_upgrade(self, *event: Any) -> None:
        self._waiting.cancel()  # a WebSocket is pinged
        super().handle_websocket_upgrade(*event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.settings.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.cancel()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)


class WebServer(uvicorn.Server):
    """Serves an application (``create_app``).

    Told to end, it takes no more connections, gives answers ``stop_seconds`` to end, and then ends them with an error.

    Args:
        app: the application.
        on_start: called when requests are answered.
    """

    def __init__(self, app: FastAPI, on_start: Callable[[], object] = lambda: None):
        self.served, self.on_start = app.state.server, on_start
        settings: Settings = self.served.settings
        config = uvicorn.Config(
            app,
            http=type("Connection", (WatchedConnection,), {"settings": settings}),
            log_level="warning",
            ws_max_size=MESSAGE,
            server_header=False,
            timeout_graceful_shutdown=int(settings.stop_seconds + LAST),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        stop = self.served.stop_threads
        ending = loop.call_later(self.served.settings.stop_seconds, loop.run_in_executor, None, stop)
        await super().shutdown(sockets)
        ending.cancel()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has an address, and does not listen yet.

    Raises:
        ValueError: it cannot have this one.
    """
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError("ports are 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--host {host} --port {port}: {what}; another port is chosen by --port") from None
    return found


def run(app: FastAPI, listening: socket.socket, on_start: Callable[[], object] = lambda: None) -> None:
    """Serves until the process is told to end (SIGTERM, SIGINT)."""
    allow_files(2 * app.state.server.settings.max_connections)
    signal.signal(signal.SIGTERM, _end)
    WebServer(app, on_start).run([listening])


def _end(*_: object) -> None:
    """After uvicorn has ended for a signal, it sends it again."""
    sys.exit(0)


def allow_files(count: int) -> None:
    """Lets the process have so many files and connections open, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
