"""The application: routes, keys and headers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afn_model.serve import audio_routes, chat, health, page_routes, realtime, transcriptions
from afn_model.serve.errors import ApiError, add_handlers
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
    for module in (chat, audio_routes, transcriptions, realtime, health, page_routes):
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
    """Asks for the key, bounds the body and sets the headers of every answer.

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
                check_origin(headers)
            scope["client_id"] = "" if free else self.server.client_of(headers)
            asking.set(scope["client_id"] or (scope.get("client") or ("",))[0])
            most, said = self.server.settings.max_body_bytes, headers.get("content-length", "0")
            if not said.isdecimal() or int(said) > most:
                raise ApiError(413, f"a request may have {most:,} bytes", code="too_large")
        except ApiError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            else:
                await error.response()(scope, receive, self._with_headers(send))
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise ApiError(413, f"a request may have {most:,} bytes", code="too_large")
            return message

        await self.app(scope, bounded, self._with_headers(send))

    @staticmethod
    def _with_headers(send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        return sending
