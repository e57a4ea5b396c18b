"""The application: routes, keys and headers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from traceback import format_exc, format_tb

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afn_model.serve import audio_routes, chat, health, page_routes, realtime, speech_routes, transcriptions
from afn_model.serve.errors import ApiError, add_handlers, as_api_error
from afn_model.serve.limits import asking
from afn_model.serve.origins import check_origin
from afn_model.serve.server import Server

KEY = "openai-insecure-api-key."  # a WebSocket's subprotocol, as OpenAI names it
OPEN = ("/health",)  # paths that need no key
PAGE = ("/", "/page/")  # the page itself holds nothing of anybody: it asks for the key
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    f"connect-src 'self'; style-src 'self' '{page_routes.STYLE_HASH}'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
log = logging.getLogger("afn.serve")


def create_app(server: Server) -> FastAPI:
    """The application that answers for a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.stop()

    app = FastAPI(title="Audio Flamingo Next", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.server = server
    add_handlers(app)
    for module in (chat, speech_routes, audio_routes, transcriptions, realtime, health, page_routes):
        app.include_router(module.router)
    app.add_middleware(Guard, server=server)
    return app


def _headers(scope: Scope) -> Headers:
    """Of a request; a WebSocket's key may be a subprotocol, since browsers set no headers there."""
    found = Headers(scope=scope)
    if scope["type"] == "websocket" and "authorization" not in found:
        for name in scope.get("subprotocols", ()):
            if name.startswith(KEY):
                return Headers({"authorization": f"Bearer {name.removeprefix(KEY)}"})
    return found


class Guard:
    """Asks for the key, bounds bodies, sees to errors that nobody has expected, and sets every answer's headers.

    ``scope["client_id"]`` says who asks (``Server.client_of``).
    """

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], _headers(scope)
        try:
            free = path in OPEN or path == PAGE[0] or path.startswith(PAGE[1])
            if not free and not self.server.settings.keys:
                check_origin(Headers(scope=scope))
            scope["client_id"] = "" if free else self.server.client_of(headers)
            asking.set(scope["client_id"] or (scope.get("client") or ("",))[0])
        except ApiError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            else:
                await error.response()(scope, receive, self._with_headers(send))
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, self._with_headers(send), headers.get("content-length", "0"))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, length: str) -> None:
        """Nothing of an error that nobody has expected is said, or logged but where it was: it may quote a request."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            try:
                await send(message)
            except Exception as error:  # a connection whose client breaks HTTP's rules while it is answered
                log.warning("%.200r cannot be answered: %s", scope["path"], type(error).__name__)
                raise ClientDisconnect from error

        try:
            with self.server.bodies.read(receive, length) as bounded:
                await self.app(scope, bounded, sending)
            return
        except ClientDisconnect:
            return
        except ApiError as error:
            told = error
        except Exception as error:
            told = as_api_error(RuntimeError())
            said = format_exc() if self.server.settings.log_content else "".join(format_tb(error.__traceback__))
            log.error("%.20r %.200r failed: %s\n%s", scope["method"], scope["path"], type(error).__name__, said)
        if not begun:  # what is cut off is no whole answer for its client either
            await told.response()(scope, receive, send)

    @staticmethod
    def _with_headers(send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        return sending
