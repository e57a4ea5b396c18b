"""``/v1/audio``: recordings uploaded once and asked about by their id."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import UploadFile
from torch import Tensor

from afn_model.audio.encode import HEADER, wav_header
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.serve.errors import ApiError
from afn_model.serve.server import Server, server_of
from afn_model.serve.uploads import Upload, begun, compute_ahead

router = APIRouter()
CHUNK = 1 << 16  # bytes sent at once
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


@router.post("/v1/audio")
async def upload(request: Request) -> dict[str, Any]:
    """Keeps a recording: the body is its file, or a form whose ``file`` is."""
    server, owner = server_of(request), request.scope["client_id"]
    data = await _body(request)
    id = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    kept = await server.uploads.made(owner, id, lambda: _upload(server, owner, data))
    return kept.shown()


async def _upload(server: Server, owner: str, data: bytes) -> Upload:
    recording = await server.intake.decode(data, max_seconds=server.settings.max_file_seconds, param="file")
    kept = server.uploads.add(owner, recording, len(data))
    await asyncio.to_thread(server.uploads.save, owner, kept)
    if server.settings.encode_uploads and recording.seconds <= server.settings.max_seconds:
        with suppress(ValueError):  # more than the model's context: the question will say so
            ids = await asyncio.to_thread(begun, server.processor, recording)
            server.thread.post(lambda engine: compute_ahead(engine, ids, recording))
    return kept


async def _body(request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return b"".join([chunk async for chunk in request.stream()])
    async with request.form(max_files=1, max_fields=4) as form:
        unknown = [name for name in form if name != "file"]
        if unknown:
            raise ApiError(400, f"there is no field {unknown[0]!r:.80}; there is 'file'", param=unknown[0][:80])
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the form has no file named 'file'", param="file")
        return await file.read()


@router.get("/v1/audio")
async def listed(request: Request) -> dict[str, Any]:
    """What this client has uploaded, what it used last first."""
    kept = server_of(request).uploads.of(request.scope["client_id"])
    return {"object": "list", "data": [one.shown() for one in kept]}


@router.get("/v1/audio/{id}")
async def found(request: Request, id: str) -> dict[str, Any]:
    """One recording of this client's."""
    return _find(request, id).shown()


@router.delete("/v1/audio/{id}")
async def deleted(request: Request, id: str) -> dict[str, Any]:
    """Forgets a recording."""
    _find(request, id)
    server_of(request).uploads.remove(request.scope["client_id"], id)
    return {"object": "audio", "id": id, "deleted": True}


@router.head("/v1/audio/{id}/content", include_in_schema=False)
@router.get("/v1/audio/{id}/content")
async def content(request: Request, id: str) -> Response:
    """The recording as the model hears it: WAV, 16 kHz, 16 bits; parts of it by ``Range``."""
    pcm = _find(request, id).recording.pcm
    size = HEADER + 2 * len(pcm)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{id}"', "Cache-Control": "private, no-cache"}
    part = _range(request, size, headers["ETag"])
    if part is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    first, stop = part
    headers["Content-Length"] = str(stop - first)
    status = 200
    if "range" in request.headers and part != (0, size):
        status, headers["Content-Range"] = 206, f"bytes {first}-{stop - 1}/{size}"
    chunks = iter(()) if request.method == "HEAD" else _wav(pcm, first, stop)

    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return StreamingResponse(sent(), status, headers, media_type="audio/wav")


def _find(request: Request, id: str) -> Upload:
    kept = server_of(request).uploads.find(request.scope["client_id"], id)
    if kept is None:
        raise ApiError(404, f"there is no recording {id!r:.80}", param="id", code="audio_not_found")
    return kept


def _range(request: Request, size: int, tag: str) -> tuple[int, int] | None:
    """(first byte, byte after the last) that are asked for, None where there are none.

    What is no range of bytes, several of them, or of another recording, is the whole (RFC 9110 §14.2).
    """
    asked = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-" or request.headers.get("if-range", tag) != tag:
        return 0, size
    if not asked[1]:
        first, stop = max(0, size - int(asked[2])), size
    else:
        first, stop = int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size
        if asked[2] and int(asked[2]) < first:
            return 0, size
    return (first, stop) if first < stop else None


def _wav(pcm: Tensor, first: int, stop: int) -> Iterator[bytes]:
    """Bytes of the file, made as they are sent."""
    size = 2 * len(pcm)
    header = wav_header(SAMPLE_RATE, size)
    if first < HEADER:
        yield header[first : min(stop, HEADER)]
    at = max(first, HEADER)
    while at < stop:
        end = min(at + CHUNK, stop)
        sample = (at - HEADER) // 2
        samples = pcm[sample : -(-(end - HEADER) // 2)]
        if samples.dtype != torch.int16:
            samples = (samples * 32768).round_().clamp_(-32768, 32767).to(torch.int16)
        skipped = at - HEADER - 2 * sample
        yield samples.numpy().astype("<i2").tobytes()[skipped : skipped + end - at]
        at = end
