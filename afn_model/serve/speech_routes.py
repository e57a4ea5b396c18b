"""``/v1/audio/speech``: a text that is said, sent while it is made."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afn_model.audio.encode import MIME
from afn_model.serve.chat import described
from afn_model.serve.chat_request import StrictFields, VoiceClip, read
from afn_model.serve.chat_speech import encoder, sounds, speaker_of, voice_of
from afn_model.serve.chat_stream import HEADERS
from afn_model.serve.errors import GONE, ApiError
from afn_model.serve.event_stream import line, unless_gone
from afn_model.serve.server import Server, aside, server_of
from afn_model.serve.speaking import DEFAULT
from afn_model.speech.text import spoken_text

LONGEST = 200_000  # characters of a text
router = APIRouter()


class SayRequest(StrictFields):
    """A request for speech: OpenAI's fields. Its ``input`` is said as it stands, without markup."""

    input: Annotated[str, Field(max_length=LONGEST)]
    model: str | None = None
    voice: str | VoiceClip = DEFAULT
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


SAY = TypeAdapter(SayRequest)


@router.get("/v1/audio/voices")
async def voices(request: Request) -> dict[str, Any]:
    """Whose voices have a name here; none where the server does not speak."""
    known = [] if server_of(request).voice is None else [{"id": DEFAULT, "object": "voice"}]
    return {"object": "list", "data": known}


@router.post("/v1/audio/speech", openapi_extra=described("/v1/audio/speech", SayRequest))
async def speech(request: Request) -> Response:
    """Says a text."""
    return SaidResponse(server_of(request), request)


class SaidResponse(Response):
    """Says what a request asks for; when its client has gone, nobody goes on with it.

    Args:
        server: that speaks.
        request: whose body has not been read.
    """

    def __init__(self, server: Server, request: Request):
        super().__init__()
        self.server, self.request = server, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = await read(await self.request.body(), SAY)
            await unless_gone(self.request, self.answer(asked, scope["client_id"], send))
        except ClientDisconnect:
            return
        except ApiError as error:
            if error.status != GONE:
                raise

    async def answer(self, asked: SayRequest, owner: str, send: Send) -> None:
        """Sends the sound. What goes wrong after its beginning cuts it off."""
        server = self.server
        server.check_model(asked.model)
        voice = voice_of(server, "voice")
        if asked.speed not in (None, 1):
            raise ApiError(400, f"speed: {asked.speed:g} is not supported; 1 is expected", param="speed")
        to = encoder(asked.response_format, voice.rate, "response_format")
        async with AsyncExitStack() as stack:
            stack.enter_context(server.limits.admitted())
            server.metrics.endpoints.labels(server.metrics.model, "speech").inc()
            ids = await aside(lambda: self._ids(asked.input), len(asked.input))
            speaker = await speaker_of(server, asked.voice, owner, "voice")
            said = await stack.enter_async_context(voice.open(speaker, seed=asked.seed))
            said.say(ids)
            said.end()
            events, begun = asked.stream_format == "sse", False
            try:
                async for data in sounds(said, to):
                    if not begun:
                        kind = [(b"content-type", MIME[asked.response_format].encode())]
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": HEADERS if events else kind}
                        )
                        begun = True
                    delta = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()} if events else None
                    await _tell(send, data if delta is None else line(delta).encode())
            except ApiError as error:
                if not (begun and events):
                    raise
                await send({"type": "http.response.body", "body": line(error.body()).encode(), "more_body": False})
                return
            if not begun:
                raise ApiError(500, "the voice has said nothing", code="internal_error")
            if events:
                counts = {"input_tokens": len(ids), "output_tokens": said.answer.times.chunks}
                usage = counts | {"total_tokens": sum(counts.values())}
                done = {"type": "speech.audio.done", "usage": usage, "afn": {"speech": said.answer.times.as_json()}}
                await _tell(send, line(done).encode() + b"data: [DONE]\n\n")
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _ids(self, text: str) -> list[int]:
        try:
            return self.server.processor.tokenizer.encode(spoken_text(text), add_special_tokens=False).ids
        except ValueError as error:
            raise ApiError(400, f"input: {error}", param="input") from None


async def _tell(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
