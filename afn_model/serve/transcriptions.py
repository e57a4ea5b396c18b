"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``.

A recording that is longer than the model takes is cut where it is quiet; its pieces are asked about at the same time,
and their answers sent in order.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from afn_model.serve.errors import ApiError
from afn_model.serve.event_stream import lines, unless_gone
from afn_model.serve.hearing import Hearing
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server, server_of
from afn_model.serve.transcript_formats import (
    Spoken,
    Transcript,
    subtitles,
    to_diarized_json,
    to_json,
    to_verbose_json,
)
from afn_model.serve.transcript_request import SpeechRequest, read_form, read_request
from afn_model.serve.transcript_stream import streamed

TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}

router = APIRouter()


@router.post("/v1/audio/transcriptions")
async def transcriptions(request: Request) -> Response:
    """What is said in a recording."""
    return await answered(request, "transcribe")


@router.post("/v1/audio/translations")
async def translations(request: Request) -> Response:
    """What is said in a recording, in English."""
    return await answered(request, "translate")


async def answered(request: Request, task: str) -> Response:
    """The answer to a form."""
    server = server_of(request)
    fields, file = await read_form(request, task)
    server.check_model(fields.get("model"))
    asked = read_request(fields, task)
    recording = await recording_of(server, request.scope["client_id"], file)
    hearing = await Hearing.of(server, asked, recording)
    if not asked.stream:
        return await unless_gone(request, whole(hearing))
    events = streamed(hearing)
    try:
        first = await unless_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(first, events), media_type="text/event-stream", headers=headers)


async def recording_of(server: Server, owner: str, file: bytes | str) -> Recording:
    """The recording of a form.

    Raises:
        ApiError: as of ``Intake.decode``; 404, a client has uploaded no such recording.
    """
    if isinstance(file, bytes):
        return await server.intake.decode(file, max_seconds=server.settings.max_file_seconds, param="file")
    found = server.uploads.get(owner, file)
    if found is None:
        raise ApiError(404, f"there is no recording {file!r:.80}; it must be uploaded again", param="file")
    return found


async def whole(hearing: Hearing) -> Response:
    """An answer that is sent when all of it is there."""
    async with hearing:
        pieces = [found async for found in hearing.news() if isinstance(found, Spoken)]
    return await asyncio.to_thread(response, hearing.asked, hearing.transcript(pieces))


def response(asked: SpeechRequest, said: Transcript) -> Response:
    """A transcript in the format that is asked for."""
    if asked.form == "verbose_json":
        return JSONResponse(to_verbose_json(said))
    if asked.form == "diarized_json":
        return JSONResponse(to_diarized_json(said))
    if asked.form == "json":
        return JSONResponse(to_json(said, logprobs=asked.logprobs))
    text = f"{said.text}\n" if asked.form == "text" else subtitles(said, asked.form)
    headers = {} if asked.form == "text" else {"AFN-Times": said.times}
    return PlainTextResponse(text, headers=headers, media_type=TYPES[asked.form])
