"""The real page and its pictures, with uploads and answers that are written down here."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from afn_model.serve import page_routes
from afn_model.serve.app import Guard
from afn_model.serve.bodies import Bodies
from afn_model.serve.errors import ApiError, add_handlers
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server
from afn_model.serve.settings import Settings
from afn_model.serve.uploads import Uploads

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@dataclass
class Scripted:
    """What is answered: text, and times in it by their words: (words, start, end, status, recording if it is known)."""

    answer: str = "A dog barks."
    reasoning: str = ""
    times: tuple[tuple[Any, ...], ...] = ()
    error: str = ""  # in the stream, after the answer
    endless: bool = False

    def timestamps(self) -> list[dict[str, Any]]:
        """Spans count in the thoughts and in the answer, as those of ``/v1/chat/completions``."""
        whole, at, found = self.reasoning + self.answer, 0, []
        for words, start, end, status, *recording in self.times:
            at = whole.index(words, at)
            thought = at < len(self.reasoning)
            first = at if thought else at - len(self.reasoning)
            said = {"text": words, "where": "think" if thought else "answer", "span": [first, first + len(words)]}
            of = {"recording": recording[0] if recording else None}
            found.append({"start": start, "end": end, "status": status} | said | of)
            at += len(words)
        return found


@dataclass
class Stub:
    """A server without a model."""

    settings: Settings = field(default_factory=lambda: Settings(name="tiny"))
    script: Scripted = field(default_factory=Scripted)

    def __post_init__(self) -> None:
        self.uploads = Uploads(1 << 30)
        self.bodies = Bodies(self.settings)
        self.files: dict[str, bytes] = {}
        self.asked: list[dict[str, Any]] = []
        self.instead: Recording | None = None  # of what is uploaded
        self.ranges: list[str] = []
        self.voices: list[str] = []
        self.left = threading.Event()  # a client has gone before its answer ended

    client_of = Server.client_of

    def app(self) -> FastAPI:
        app = FastAPI()
        app.state.server = self
        add_handlers(app)
        app.include_router(page_routes.router)
        app.add_middleware(Guard, server=self)  # type: ignore[arg-type]

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": self.settings.name, "object": "model"}]}

        @app.get("/v1/audio/voices")
        async def voices() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": one, "object": "voice"} for one in self.voices]}

        @app.post("/v1/audio/speech")
        async def speech(request: Request) -> StreamingResponse:
            self.asked.append(await request.json())
            return StreamingResponse(self.said(), media_type="text/event-stream")

        @app.post("/v1/audio")
        async def upload(request: Request) -> dict[str, Any]:
            data = await request.body()
            if self.instead is not None:
                self.keep(request.scope["client_id"], self.instead)
                return {"id": self.instead.id, "seconds": self.instead.seconds, "windows": 60}
            try:
                pcm, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            except soundfile.LibsndfileError:
                raise ApiError(415, "this is no recording that can be read") from None
            if rate != 16_000:
                pcm = np.interp(np.arange(0, len(pcm), rate / 16_000), np.arange(len(pcm)), pcm).astype(np.float32)
            recording = Recording(hashlib.sha256(data).hexdigest(), torch.from_numpy(pcm))
            self.keep(request.scope["client_id"], recording)
            return {"id": recording.id, "seconds": recording.seconds, "windows": -(-len(pcm) // 480_000)}

        @app.get("/v1/audio/{id}/content")
        async def content(request: Request, id: str) -> Response:
            data = self.files[id]
            asked = request.headers.get("range", "bytes=0-").removeprefix("bytes=")
            self.ranges.append(asked)
            first, _, last = asked.partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            return Response(data[start : end + 1], 206, headers, "audio/wav")

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> StreamingResponse:
            self.asked.append(await request.json())
            return StreamingResponse(self.stream(), media_type="text/event-stream")

        return app

    def keep(self, owner: str, recording: Recording) -> None:
        self.uploads.add(owner, recording)
        file = io.BytesIO()
        soundfile.write(file, recording.pcm.numpy(), 16_000, format="WAV", subtype="PCM_16")
        self.files[recording.id] = file.getvalue()

    async def said(self) -> AsyncIterator[str]:
        """Ten seconds of quiet."""
        for _ in range(10):
            data = base64.b64encode(bytes(48_000)).decode()
            yield f"data: {json.dumps({'type': 'speech.audio.delta', 'audio': data})}\n\n"
        yield "data: [DONE]\n\n"

    async def stream(self) -> AsyncIterator[str]:
        def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
            chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more
            return f"data: {json.dumps(chunk)}\n\n"

        script = self.script
        yield event({"role": "assistant", "content": ""})
        for name, text in (("reasoning", script.reasoning), ("content", script.answer)):
            for at in range(0, len(text), 7):
                yield event({name: text[at : at + 7]})
        try:
            while script.endless:
                yield ": waiting\n\n"
                await asyncio.sleep(0.01)
        finally:
            if script.endless:
                self.left.set()
        if script.error:
            yield f"data: {json.dumps({'error': {'message': script.error}})}\n\n"
            return
        yield event({}, "stop", afn={"timestamps": script.timestamps()})
        usage = {"prompt_tokens": 100, "completion_tokens": len(script.answer.split()), "total_tokens": 0}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """The address of a stub that listens on a free port of this machine."""
    web = uvicorn.Server(uvicorn.Config(stub.app(), host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    try:
        while not web.started:
            assert thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = web.force_exit = True
        thread.join(30)
