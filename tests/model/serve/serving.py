"""A tiny server for tests: in this process, or behind a real socket."""

from __future__ import annotations

import asyncio
import io
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import soundfile
import uvicorn
from fastapi import FastAPI

from afn_model.infer.engine import Engine
from afn_model.serve.app import create_app
from afn_model.serve.server import Server
from afn_model.serve.settings import Settings
from tests.tiny import noise, tiny


def tiny_server(*, engine: dict[str, Any] | None = None, **settings: Any) -> Server:
    """A server with the tiny model, named "tiny"."""
    model, processor = tiny()
    options = {"pages": 400, "slots": 64} | (engine or {})
    return Server(Engine(model, processor, **options), Settings(**{"name": "tiny", "decoders": 1} | settings))


def wav(seconds: float = 1.0, seed: int = 0) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed), 16_000, format="WAV")
    return file.getvalue()


@asynccontextmanager
async def in_process(server: Server, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application; whole answers alone, as nothing is streamed on the way."""
    await server.start()
    try:
        transport = httpx.ASGITransport(create_app(server), raise_app_exceptions=False)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
            yield client
    finally:
        await server.stop()


@contextmanager
def running(server: Server) -> Iterator[str]:
    """The address of a server that listens on a free port of this machine."""
    settings = uvicorn.Config(create_app(server), host="127.0.0.1", port=0, log_level="warning")
    web = uvicorn.Server(settings)
    ready = threading.Event()
    told, web.startup = web.startup, None  # type: ignore[method-assign]

    async def startup(sockets: Any = None) -> None:
        await told(sockets=sockets)
        ready.set()

    web.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(web.serve()), daemon=True)
    thread.start()
    try:
        assert ready.wait(60), "the server does not start"
        port = web.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        web.should_exit = True
        thread.join(30)


def application(args: Namespace) -> FastAPI:
    """What a replica serves; uploads are kept in ``args.folder``."""
    return create_app(tiny_server(upload_folder=args.folder))
