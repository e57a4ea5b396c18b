"""``/v1/audio/speech``: whole and streamed, in every format, refused, and left early."""

import base64
import io
import json

import httpx
import numpy as np
import openai
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families

from afn_model.serve.speaking import SpeechThread
from tests.model.serve.serving import running, tiny_server, wav
from tests.model.speech.tones import AFTER, FRAME, tone_prompt, tones
from tests.tiny import tiny

RATE = 16_000
TOKENS = tiny()[1].tokenizer
TEXT = "What is said? A dog barks."
SAID = TOKENS.encode(TEXT).ids
SAMPLES = (len(SAID) + AFTER) * FRAME


@pytest.fixture(scope="module")
def server():
    return tiny_server(
        voice=SpeechThread(tones(TOKENS, RATE), tone_prompt, places=2), keys=("k",), encode_uploads=False
    )


@pytest.fixture(scope="module")
def address(server):
    with running(server, send_buffer=4096) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer k"}, timeout=60) as found:
        yield found


def say(client, **fields):
    return client.post("/v1/audio/speech", json={"input": TEXT, "voice": "default"} | fields)


def test_openai_s_client_streams_a_wav(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as client:
        asked = {"model": "tiny", "voice": "default", "input": f"**{TEXT}**", "response_format": "wav"}
        with client.audio.speech.with_streaming_response.create(**asked) as reply:
            data = b"".join(reply.iter_bytes())
    assert reply.headers["content-type"] == "audio/wav"
    pcm, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (rate, len(pcm)) == (RATE, SAMPLES)
    assert pcm[::FRAME] == pytest.approx([*(one / 1000 for one in SAID), *[-0.5] * AFTER], abs=1e-4)


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "pcm"])
def test_formats(client, form):
    reply = say(client, **({} if form == "mp3" else {"response_format": form}))
    assert reply.status_code == 200
    if form == "pcm":
        assert len(reply.content) == 2 * SAMPLES * 24_000 // RATE
        return
    import av

    with av.open(io.BytesIO(reply.content)) as file:
        pcm = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])
        rate, codec = file.streams.audio[0].rate, file.streams.audio[0].codec_context.name
    assert form in codec
    assert len(pcm) / rate == pytest.approx(SAMPLES / RATE, abs=0.2 if form in ("mp3", "aac") else 1e-3)


def test_server_sent_events(client):
    lines = say(client, response_format="wav", stream_format="sse").text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    *deltas, done = [json.loads(one.removeprefix("data: ")) for one in lines[:-2]]
    assert {one["type"] for one in deltas} == {"speech.audio.delta"}
    assert len(b"".join(base64.b64decode(one["audio"]) for one in deltas)) == 44 + 2 * SAMPLES
    counts = {"input_tokens": len(SAID), "output_tokens": len(SAID) + AFTER}
    assert done["usage"] == counts | {"total_tokens": sum(counts.values())}
    assert done["afn"]["speech"]["audio"] == SAMPLES / RATE


def test_an_upload_lends_its_voice(server, client):
    assert client.get("/v1/audio/voices").json()["data"] == [{"id": "default", "object": "voice"}]
    id = client.post("/v1/audio", content=wav(1.2)).json()["id"]
    voice = {"audio": f"afn://sha256/{id}", "consent": "Ann, 1 May 2026"}
    assert say(client, voice=voice, response_format="pcm", seed=3).status_code == 200
    assert server.voice.engine.engine.all[-1].speaker.consent == voice["consent"]


SILENT = f"data:audio/wav;base64,{base64.b64encode(wav(0.5)).decode()}"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "nothing to say"),
        ({"input": " *...* \n"}, "input", "nothing to say"),
        ({"input": "<|\u200bim_end|>"}, "input", "nothing to say"),
        ({"input": "a\ue000b"}, "input", "nobody can say the character U+E000"),
        ({"input": "x" * 200_001}, "input", "200000 characters"),
        ({"input": None}, "input", "string"),
        ({"voice": "alloy"}, "voice", "there is no voice 'alloy' here"),
        ({"voice": {"audio": SILENT, "consent": ""}}, "voice.consent", "who has agreed"),
        ({"voice": {"audio": SILENT, "consent": "Ann"}}, "voice.audio", "silent or too short"),
        ({"voice": 3}, "voice", "string"),
        ({"voice": {"id": "voice_1"}}, "voice", ""),
        ({"response_format": "midi"}, "response_format", "'mp3', 'opus'"),
        ({"speed": 1.5}, "speed", "1 is expected"),
        ({"instructions": "Whisper."}, "instructions", "not supported: how something is to be said"),
        ({"stream_format": "bytes"}, "stream_format", "'audio' or 'sse'"),
    ],
)
def test_what_is_refused(server, client, fields, param, words):
    reply = say(client, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert not server.voice.streams


def test_a_key_is_asked_for_and_so_is_a_voice(address):
    assert httpx.post(f"{address}/v1/audio/speech", json={"input": TEXT}).status_code == 401


def leave_after(server, client, chunks):
    asked = {"input": TEXT * 800, "response_format": "wav"}
    with client.stream("POST", "/v1/audio/speech", json=asked) as reply:
        for _, data in zip(range(chunks), reply.iter_raw(), strict=False):
            assert data
    for _ in range(3000):
        if not (server.voice.streams or server.limits.requests):
            break
        client.get("/health").raise_for_status()


def test_a_long_text_for_one_who_leaves(server, client):
    for chunks in (0, 1, 3):
        leave_after(server, client, chunks)
    assert (server.voice.streams, server.voice.engine.engine.streams, server.limits.requests) == ({}, [], 0)
    assert say(client, response_format="pcm").status_code == 200  # the places are free


def test_counters(server, client):
    leave_after(server, client, 1)
    assert say(client, response_format="pcm").status_code == 200
    found = {
        (sample.name, sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("afn:speech")
    }
    ended = len([one for one in server.voice.engine.engine.all if one.reason == "end"])
    assert found["afn:speech_ended_total", "end"] == ended > 0
    assert found["afn:speech_ended_total", "closed"] >= 1
    assert found["afn:speech_first_audio_seconds_count", ""] >= ended
    assert found["afn:speech_gap_seconds_count", ""] > ended
    assert (found["afn:speech_streams", ""], found["afn:speech_ended_total", "error"]) == (0, 0)


def test_health_knows_of_the_voice():
    server = tiny_server(voice=SpeechThread(tones(TOKENS, RATE), tone_prompt))
    with running(server) as address:
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        server.voice.engine.engine.broken = True
        asked = {"input": TEXT, "response_format": "wav"}
        assert httpx.post(f"{address}/v1/audio/speech", json=asked).status_code == 503
        reply = httpx.get(f"{address}/health")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_died")
        assert "the voice has died" in reply.json()["error"]["message"]
