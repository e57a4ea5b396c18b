"""Recordings of a conversation: base64 in pieces, several at the same time, and by address."""

import asyncio
import base64
import sys
from types import ModuleType

import pytest

from afn_model.serve.chat_audio import hear, together
from afn_model.serve.chat_request import Message
from afn_model.serve.errors import ApiError
from tests.model.serve.serving import tiny_server, wav


@pytest.fixture(scope="module")
def server():
    return tiny_server(hosts=("example.org",))


def message(*parts):
    return Message.model_validate({"role": "user", "content": list(parts)})


def clip(seed):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(0.5, seed)).decode(), "format": "wav"}}


def test_recordings_are_decoded_at_the_same_time(server, monkeypatch):
    decode, begun = server.intake.decode, []

    async def meets(data, **options):
        begun.append(options["param"])
        while len(begun) < 2:
            await asyncio.sleep(0)
        return await decode(data, **options)

    monkeypatch.setattr(server.intake, "decode", meets)
    heard = asyncio.run(asyncio.wait_for(hear([message(clip(1), clip(2), clip(1))], server, ""), 30))
    assert begun == ["messages[0].content[0]", "messages[0].content[1]"]
    first, second, third = heard.turns[0].audios
    assert first is third is not second
    assert [id(one.pcm) for one in heard.recordings] == [id(first.source.pcm), id(second.source.pcm)]


def test_the_first_error_ends_the_others():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fails():
        await asyncio.sleep(0)
        raise ApiError(422, "no audio")

    with pytest.raises(ApiError):
        asyncio.run(together([waits(), fails()]))
    assert ended == [True]


def test_too_many(server):
    with pytest.raises(ApiError, match=r"messages\[0\].content\[256\]: a request may be about 256"):
        asyncio.run(hear([message(*257 * [clip(0)])], server, ""))


def test_what_is_fetched_is_decoded(server, monkeypatch):
    asked, module = [], ModuleType("afn_model.serve.fetch")

    async def fetch(url, settings, param):
        asked.append((url, settings.hosts, param))
        return wav(0.5)

    module.__dict__["fetch"] = fetch
    monkeypatch.setitem(sys.modules, module.__name__, module)
    part = {"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}}
    heard = asyncio.run(hear([message(part)], server, ""))
    assert asked == [("https://example.org/a.wav", ("example.org",), "messages[0].content[0]")]
    assert [one.seconds for one in heard.recordings] == [0.5]


def test_long_uploads_are_asked_about_in_parts(monkeypatch):
    server = tiny_server(max_seconds=1.0)
    recording = asyncio.run(tiny_server().intake.decode(wav(2.0)))
    server.uploads.add("me", recording)
    part = {"type": "audio_url", "audio_url": {"url": f"afn://sha256/{recording.id}"}}
    with pytest.raises(ApiError, match="start and end") as found:
        asyncio.run(hear([message(part)], server, "me"))
    assert (found.value.status, found.value.param) == (413, "messages[0].content[0]")
    heard = asyncio.run(hear([message(part | {"start": 1.25})], server, "me"))
    assert heard.recordings[0].pcm.equal(recording.pcm[20_000:])
    with pytest.raises(ApiError, match="upload it again") as found:
        asyncio.run(hear([message(part)], server, "another"))
    assert found.value.status == 404
