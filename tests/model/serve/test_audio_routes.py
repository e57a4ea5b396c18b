"""``/v1/audio`` as clients see it, hostile ones too."""

import asyncio
import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.decode import load_audio
from afn_model.serve.intake import DECODERS
from tests.model.serve.hostile import ALL, hostile, sound
from tests.model.serve.serving import in_process, tiny_server, wav


@pytest.fixture
def server():
    return tiny_server(keys=("one", "two"), decoders=2, upload_bytes=1 << 20, max_body_bytes=1 << 20)


def test_uploads(server):
    async def asked():
        async with in_process(server, "one") as client:
            data = wav(2.0)
            sent = await client.post("/v1/audio", content=data)
            id = hashlib.sha256(data).hexdigest()
            said = sent.json()
            assert sent.status_code == 200
            assert said.pop("created") >= server.started
            assert said == {
                "object": "audio",
                "id": id,
                "seconds": 2.0,
                "windows": 1,
                "bytes": len(data),
                "problems": [],
            }
            decode = server.intake.decode
            server.intake.decode = None  # what is there is not decoded again
            again = await client.post("/v1/audio", files={"file": ("a.wav", data)})
            server.intake.decode = decode
            assert again.json() == sent.json() == (await client.get(f"/v1/audio/{id}")).json()
            assert (await client.get("/v1/audio")).json() == {"object": "list", "data": [sent.json()]}

            other = {"Authorization": "Bearer two"}
            assert (await client.get("/v1/audio", headers=other)).json()["data"] == []
            for method, path in (("GET", id), ("DELETE", id), ("GET", f"{id}/content")):
                answer = await client.request(method, f"/v1/audio/{path}", headers=other)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "audio_not_found")
            assert (await client.get("/v1/audio", headers={"Authorization": ""})).status_code == 401

            await content(client, id, data)
            assert (await client.delete(f"/v1/audio/{id}")).json() == {"object": "audio", "id": id, "deleted": True}
            assert (await client.delete(f"/v1/audio/{id}")).status_code == 404
            assert server.uploads.bytes == 0
            await refused(client)

    asyncio.run(asked())


async def content(client: httpx.AsyncClient, id: str, data: bytes) -> None:
    """The recording played back, whole and in parts."""
    path = f"/v1/audio/{id}/content"
    whole = await client.get(path)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "audio/wav")
    samples, rate = soundfile.read(io.BytesIO(whole.content), dtype="int16")
    assert rate == 16_000
    assert np.array_equal(samples, load_audio(data, dtype=torch.int16).numpy())
    size, tag = len(whole.content), whole.headers["etag"]
    assert int(whole.headers["content-length"]) == size == 44 + 64_000
    head = await client.head(path)
    assert (head.content, head.headers["content-length"], head.headers["accept-ranges"]) == (b"", str(size), "bytes")
    parts = {"bytes=0-": (0, size), "bytes=3-9": (3, 10), "bytes=10-70001": (10, size), "bytes=-5": (size - 5, size)}
    parts |= {f"bytes={first}-{first + 2}": (first, first + 3) for first in (41, 42, 43, 44, 45, 8001)}
    for asked, (first, stop) in (parts | {"bytes=45-": (45, size), "bytes=-99999999": (0, size)}).items():
        part = await client.get(path, headers={"Range": asked})
        assert part.content == whole.content[first:stop], asked
        assert part.headers["content-length"] == str(stop - first)
        if (first, stop) != (0, size):
            assert (part.status_code, part.headers["content-range"]) == (206, f"bytes {first}-{stop - 1}/{size}")
    for asked in (f"bytes={size}-", "bytes=-0", "bytes=999999999-"):
        none = await client.get(path, headers={"Range": asked})
        assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{size}")
    for asked in ("bytes=5-3", "bytes=-", "bytes=1-2,4-5", "seconds=1-2", "bytes=a-b", "bytes=1-" + "9" * 5000):
        assert (await client.get(path, headers={"Range": asked})).status_code == 200, asked
    stale = await client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"another"'})
    assert stale.content == whole.content
    assert (await client.get(path, headers={"Range": "bytes=0-1", "If-Range": tag})).status_code == 206


async def refused(client: httpx.AsyncClient) -> None:
    """Requests that are no upload."""
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    requests = {
        "nothing": (422, {"content": b""}),
        "text": (415, {"content": b"hello"}),
        "no file": (400, {"files": {"other": ("a.wav", wav())}}),
        "a field more": (400, {"files": {"file": ("a.wav", wav())}, "data": {"model": "tiny"}}),
        "a field for a file": (400, {"files": {"x": ("", b"")}, "data": {"file": "text"}}),
        "two files": (400, {"files": [("file", ("a", wav())), ("file", ("b", wav()))]}),
        "no form": (400, {"content": b"no form", "headers": form}),
        "half a form": (400, {"content": b'--x\r\nContent-Disposition: form-data; name="file"', "headers": form}),
    }
    for name, (status, options) in requests.items():
        answer = await client.post("/v1/audio", **options)
        assert answer.status_code == status, (name, answer.text)
        assert answer.json()["error"]["message"]
    assert (await client.post("/v1/audio", content=bytes((1 << 20) + 1))).status_code == 413


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sent_all(server, files) -> Counter:
    """How many answers there were of each status, while good recordings are answered too."""

    async def asked():
        found, free = Counter(), asyncio.Semaphore(2)
        async with in_process(server, "one") as client:

            async def send(name: str, data: bytes) -> None:
                async with free:
                    answer = await client.post("/v1/audio", content=data)
                assert answer.status_code == 200 or 400 <= answer.status_code < 500, (name, answer.text)
                if answer.status_code != 200:
                    assert "\n" not in answer.json()["error"]["message"], name
                found[answer.status_code] += 1

            await client.post("/v1/audio", content=sound())
            maker, before = DECODERS.process.pid, resident()
            for first in range(0, len(files), 20):
                await asyncio.gather(*(send(*file) for file in files[first : first + 20]), good(client, first))
            assert DECODERS.process.pid == maker
            assert resident() - before < 100 << 20
        return found

    async def good(client: httpx.AsyncClient, seed: int) -> None:
        answer = await client.post("/v1/audio", content=wav(1.0, seed))
        assert answer.json()["seconds"] == 1.0

    return asyncio.run(asked())


def test_hostile_recordings(server, request):
    found = sent_all(server, hostile(60, request.config.option.seed))
    assert sum(found.values()) == 60
    assert set(found) <= {200, 413, 415, 422}
    assert min(found[200], found[415], found[422]) >= 3


@pytest.mark.slow
def test_more_hostile_recordings(server, request):
    found = sent_all(server, hostile(ALL, request.config.option.seed))
    assert sum(found.values()) == ALL
    assert set(found) <= {200, 413, 415, 422}
