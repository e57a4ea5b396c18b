"""A tiny server for tests: in this process, or behind a real socket."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import soundfile
from fastapi import FastAPI

from afn_model.infer.engine import Engine
from afn_model.serve.app import create_app
from afn_model.serve.server import Server
from afn_model.serve.settings import Settings
from afn_model.serve.speaking import SpeechThread
from afn_model.serve.web import WebServer, bound
from tests.tiny import noise, tiny


def tiny_server(*, engine: dict[str, Any] | None = None, voice: SpeechThread | None = None, **settings: Any) -> Server:
    """A server with the tiny model, named "tiny", and perhaps a voice."""
    model, processor = tiny()
    options = {"pages": 400, "slots": 64} | (engine or {})
    found = Settings(**{"name": "tiny", "decoders": 1} | settings)
    return Server(Engine(model, processor, **options), found, voice=voice)


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
def running(server: Server, *, send_buffer: int | None = None) -> Iterator[str]:
    """The address of a server that listens on a free port of this machine.

    Args:
        server: that answers.
        send_buffer: bytes that the system holds for a client that does not read.
    """
    ready, listening = threading.Event(), bound("127.0.0.1", 0)
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    web = WebServer(create_app(server), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(web.serve([listening])), daemon=True)
    thread.start()
    try:
        assert ready.wait(60), "the server does not start"
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join(30)


def application(args: Namespace) -> FastAPI:
    """What a replica serves; uploads are kept in ``args.folder``."""
    return create_app(tiny_server(upload_folder=args.folder))
