"""The page, and the pictures of a recording that it shows."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request, Response

from afn_model.serve.errors import ApiError
from afn_model.serve.peaks import peaks
from afn_model.serve.recording import Recording
from afn_model.serve.server import server_of
from afn_model.serve.spectrogram import spectrogram

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The one style element of wavesurfer.js, at the height that player.js gives it: policies name what is not in a file.
STYLE_HASH = "sha256-4hGoO+X6KXe8Gw08N/aBKwvHEYryxn/8CNSB0dTq+m0="

router = APIRouter()


@functools.cache
def files() -> dict[str, tuple[bytes, str, str]]:
    """What is served: by path, its bytes, type and ETag. Nothing else of the disk can be asked for."""
    found = {}
    for file in sorted(FOLDER.rglob("*")):
        if file.suffix in TYPES:
            data = file.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
            found[file.relative_to(FOLDER).as_posix()] = (data, TYPES[file.suffix], etag)
    return found


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page."""
    return await page_file(request, "index.html")


@router.get("/page/{path:path}", include_in_schema=False)
async def page_file(request: Request, path: str) -> Response:
    """A file of the page; 304 where the browser has it already."""
    if path not in files():
        raise ApiError(404, "the page has no such file")
    data, kind, etag = files()[path]
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return Response(status_code=304, headers=headers) if etag in known else Response(data, 200, headers, kind)


def _recording(request: Request, id: str) -> Recording:
    found = server_of(request).uploads.get(request.scope["client_id"], id)
    if found is None:
        raise ApiError(404, "there is no such recording; it may have made room for others: upload it again")
    return found


@router.get("/v1/audio/{id}/peaks")
async def audio_peaks(request: Request, id: str, n: int = Query(2000, ge=1, le=100_000)) -> dict[str, Any]:
    """Minimum and maximum of each of at most ``n`` parts of a recording: int8 pairs in base64, 127 for ``loudest``."""
    recording = _recording(request, id)
    pairs, loudest = await asyncio.to_thread(peaks, recording.pcm, n)
    data = base64.b64encode(pairs.numpy().tobytes()).decode()
    return {"id": id, "seconds": recording.seconds, "n": len(pairs), "loudest": loudest, "peaks": data}


@router.get("/v1/audio/{id}/mel/{window}.png", response_class=Response)
async def audio_mel(request: Request, id: str, window: int, columns: int = 3000) -> Response:
    """Log-mel features of a 30-second window of a recording, as a picture."""
    recording = _recording(request, id)
    picture = await asyncio.to_thread(spectrogram, recording.pcm, window, columns)
    return Response(picture, headers={"Cache-Control": "private, max-age=3600"}, media_type="image/png")
