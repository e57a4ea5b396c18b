"""Transcriptions and translations as OpenAI's client asks for them; the model is a script but for one."""

import asyncio
import http.client
import io
import json
import math
import socket
import sys
import threading
from itertools import pairwise
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import soundfile

from afn_model.audio.pieces import cut_samples
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import read_conversation
from afn_model.prompt.questions import DIARIZE, TRANSCRIBE
from afn_model.serve.errors import ApiError
from afn_model.serve.transcript_formats import compression_ratio
from tests.model.serve.scripted import LOGPROB, TEXT_TOKENS, Script, always
from tests.model.serve.serving import running, tiny_server, wav
from tests.tiny import noise

TIMED = "[0:00.5 - 0:01.2] Hello there. [0:01.2 - 0:02] Goodbye now."
PLAIN = "Hello there. Goodbye now."
PAUSES = (17.3, 34.1, 52.2)  # seconds at which the long recording is quiet for half a second


@pytest.fixture(scope="module")
def server():
    return tiny_server(engine={"deterministic": True}, max_seconds=20.0, max_file_seconds=100.0)


@pytest.fixture(scope="module")
def url(server):
    with running(server) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def script(server, monkeypatch):
    monkeypatch.setattr(server, "ask", server.ask)  # puts it back

    def script(answer):
        return Script(server, answer)

    return script


@pytest.fixture(scope="module")
def talk():
    """65 s with pauses, at 8 kHz."""
    pcm = noise(65.0, rate=8_000)
    for pause in PAUSES:
        pcm[round(pause * 8_000) : round((pause + 0.5) * 8_000)] *= 1e-3
    return flac(pcm, 8_000)


def flac(pcm, rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="FLAC")
    return file.getvalue()


def ask(client, data=None, **options):
    data = wav(2.5) if data is None else data
    return client.audio.transcriptions.create(model="tiny", file=("talk.wav", data), **options)


def tokens_of(server, text):
    return server.processor.tokenizer.encode(text, add_special_tokens=False).ids


def test_json(client, server, script):
    told = script(always(f" {PLAIN} "))
    found = ask(client, language="de", prompt="About dogs.", include=["logprobs"], keywords=["Rex"])
    assert found.text == PLAIN
    (asked,) = told.asked
    assert asked.text == f"{TRANSCRIBE} The language is German. About dogs. Words that may come up: Rex."
    assert (asked.endpoint, asked.params.temperature, asked.params.max_new_tokens) == ("transcriptions", 0.0, 1024)
    audio, output = 2.5 * 25 // 1, len(found.logprobs)
    assert found.usage.to_dict() == {
        "type": "tokens",
        "input_tokens": TEXT_TOKENS + audio,
        "output_tokens": output,
        "total_tokens": TEXT_TOKENS + audio + output,
        "input_token_details": {"audio_tokens": audio, "text_tokens": TEXT_TOKENS},
    }
    assert b"".join(bytes(map(int, one.bytes)) for one in found.logprobs).decode() == f" {PLAIN} "
    assert {one.logprob for one in found.logprobs} == {LOGPROB}
    assert found.afn["pieces"] == [
        {
            "start": 0.0,
            "end": 2.5,
            "times": "estimated",
            "model_times": "none",
            "finish_reason": "stop",
            "cached_tokens": 0,
        }
    ]


def test_verbose_json(client, server, script):
    script(always(TIMED, "length"))
    pcm = noise(2.5)
    pcm[24_000:] = 0  # the last second of what is heard, a part of the second segment
    found = ask(
        client,
        flac(pcm),
        response_format="verbose_json",
        temperature=0.5,
        timestamp_granularities=["segment"],
        language="en",
    )
    assert (found.task, found.language, found.duration, found.text) == ("transcribe", "english", 2.5, PLAIN)
    assert found.usage.to_dict() == {"type": "duration", "seconds": 2.5}
    first, second = (one.to_dict() for one in found.segments)
    texts = [server.processor.decode(one["tokens"]).strip() for one in (first, second)]
    assert texts == ["[0:00.5 - 0:01.2] Hello there.", "[0:01.2 - 0:02] Goodbye now."]
    for one in (first, second):
        del one["tokens"]
    same = {"seek": 0, "temperature": 0.5, "avg_logprob": LOGPROB}
    said = {"id": 0, "start": 0.5, "end": 1.2, "text": "Hello there.", "no_speech_prob": 0.0}
    assert first == same | said | {"compression_ratio": compression_ratio("Hello there.")}
    assert second.pop("no_speech_prob") == pytest.approx(5 / 8)  # of 1.2 to 2.0 s, what lies behind 1.5
    said = {"id": 1, "start": 1.2, "end": 2.0, "text": "Goodbye now."}
    assert second == same | said | {"compression_ratio": compression_ratio("Goodbye now.")}
    assert found.afn["times"] == "model"
    assert found.afn["pieces"][0]["finish_reason"] == "length"
    assert found.afn["usage"]["input_token_details"]["audio_tokens"] == 62


@pytest.mark.parametrize(
    ("said", "status"), [(PLAIN, "none"), ("[0:00.5 - 0:01] Hello there. [0:02 - 0:09] Goodbye now.", "past end")]
)
def test_times_that_are_not_the_models_are_called_estimated(client, script, said, status):
    script(always(said))
    found = ask(client, response_format="verbose_json")
    assert found.segments[0].start == 0.0
    assert found.segments[-1].end == found.duration == 2.5
    assert all(a.end == b.start for a, b in pairwise(found.segments))
    assert (found.afn["times"], found.afn["pieces"][0]["model_times"]) == ("estimated", status)


def test_subtitles_as_others_read_them(client, script):
    srt, webvtt = pytest.importorskip("srt"), pytest.importorskip("webvtt")
    script(always(TIMED.replace("Hello", "<b> & --> Hello")))
    cues = list(srt.parse(ask(client, response_format="srt"), ignore_errors=False))
    assert [(cue.index, cue.start.total_seconds(), cue.end.total_seconds()) for cue in cues] == [
        (1, 0.5, 1.2),
        (2, 1.2, 2.0),
    ]
    assert [cue.content for cue in cues] == ["<b> & -> Hello there.", "Goodbye now."]
    cues = webvtt.from_string(ask(client, response_format="vtt"))
    assert [(cue.start, cue.end) for cue in cues] == [
        ("00:00:00.500", "00:00:01.200"),
        ("00:00:01.200", "00:00:02.000"),
    ]
    assert [cue.text for cue in cues] == ["&lt;b&gt; &amp; -&gt; Hello there.", "Goodbye now."]
    script(always(PLAIN))
    cues = webvtt.from_string(ask(client, response_format="vtt"))
    assert [cue.text for cue in cues] == ["Hello there.", "Goodbye now."]
    assert "NOTE times: estimated" in ask(client, response_format="vtt")


def test_text(client, script):
    script(always(PLAIN))
    assert ask(client, response_format="text") == f"{PLAIN}\n"


def test_who_speaks(client, script):
    told = script(always("[Speaker 1] [0:00] Hello there. [Speaker 2] [0:01] Goodbye."))
    found = ask(client, response_format="diarized_json", chunking_strategy="auto")
    assert told.asked[0].text == DIARIZE
    assert (found.task, found.duration, found.text) == ("transcribe", 2.5, "A: Hello there.\nB: Goodbye.")
    assert [one.to_dict() for one in found.segments] == [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number}",
            "start": start,
            "end": end,
            "speaker": who,
            "text": text,
        }
        for number, (who, start, end, text) in enumerate([("A", 0.0, 1.0, "Hello there."), ("B", 1.0, 2.5, "Goodbye.")])
    ]
    assert found.usage.type == "tokens"


@pytest.fixture
def pieces(server, talk):
    """Samples of the pieces of the long recording."""
    pcm = asyncio.run(server.intake.decode(talk, max_seconds=100.0)).pcm
    assert len(pcm) == 65 * 16_000
    return cut_samples(pcm, 20.0)


def test_a_long_recording_in_pieces(client, server, script, talk, pieces):
    ended, others = [], asyncio.Event()

    async def answer(question):
        number = [b - a for a, b in pieces].index(question.samples[0])
        if number == 0:  # it ends last
            await asyncio.wait_for(others.wait(), 30)
        ended.append(number)
        if len(ended) == 3:
            others.set()
        return f"[0:00.25 - 0:03] Part {number}."

    assert len({b - a for a, b in pieces}) == 4
    told = script(answer)
    found = ask(client, talk, response_format="verbose_json")
    assert sorted(asked.samples[0] for asked in told.asked) == sorted(b - a for a, b in pieces)
    assert (told.most, ended[-1]) == (4, 0)
    assert (pieces[0][0], pieces[-1][1]) == (0, 65 * 16_000)
    # Cut in the pauses, each of which lies in the last fifth of what a piece may have.
    assert all(p < b / 16_000 < p + 0.5 for p, (_, b) in zip(PAUSES, pieces, strict=False))
    assert all(b == c for (_, b), (c, _) in pairwise(pieces))
    for number, (one, (a, _)) in enumerate(zip(found.segments, pieces, strict=True)):
        assert (one.id, one.text) == (number, f"Part {number}.")
        assert (one.start, one.end) == (round(a / 16_000 + 0.25, 3), round(a / 16_000 + 3, 3))
        assert one.seek == round(a / 160)
    assert found.text == "\n".join(f"Part {number}." for number in range(4))
    assert [(one["start"], one["end"]) for one in found.afn["pieces"]] == [(a / 16_000, b / 16_000) for a, b in pieces]
    assert found.afn["usage"]["input_tokens"] == sum((b - a) // 640 + TEXT_TOKENS for a, b in pieces)


def test_pieces_are_as_short_as_the_client_says(client, script, talk):
    told = script(always(PLAIN))
    ask(client, talk, extra_body={"chunk_seconds": 10})
    assert len(told.asked) >= 7
    assert max(asked.samples[0] for asked in told.asked) <= 160_000
    assert told.most == 4


def test_a_piece_waits_while_the_server_is_full(client, script, talk):
    refused = []

    async def answer(question):
        if len(refused) < 3 and len(told.asked) > 1:
            refused.append(question)
            raise ApiError(429, "full", code="queue_full", retry_after=1e-3)
        return PLAIN

    told = script(answer)
    assert ask(client, talk).text == "\n".join([PLAIN] * 4)
    assert (len(refused), len(told.asked)) == (3, 7)
    told = script(raising(ApiError(429, "full", code="queue_full", retry_after=7)))
    with pytest.raises(openai.RateLimitError, match="full") as error:
        ask(client)
    assert error.value.response.headers["retry-after"] == "7"


def raising(error):
    async def answer(_):
        raise error

    return answer


def test_a_stream(client, server, script, talk, pieces):
    async def answer(question):
        number = [b - a for a, b in pieces].index(question.samples[0])
        thought = "<think>Hm [0:01].</think> It begins."
        return f"Part {'ABCD'[number]}: [0:02.5] well [0:04.5] done." if number else thought

    script(answer)
    *deltas, done = ask(client, talk, stream=True, include=["logprobs"])
    assert {one.type for one in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(one.delta for one in deltas) == done.text
    start = [a / 16_000 for a, _ in pieces]
    assert done.text.split("\n") == [
        "It begins.",
        *(f"Part {'ABCD'[n]}: [{clock(start[n] + 2.5)}] well [{clock(start[n] + 4.5)}] done." for n in (1, 2, 3)),
    ]
    # A later piece's text is sent as it comes up to its first time.
    assert [one.delta for one in deltas][:3] == ["It begins.", "\nPart", " B:"]
    assert sum(len(one.logprobs) for one in deltas) == len(done.logprobs) == done.usage.output_tokens
    assert done.usage.input_token_details.audio_tokens == sum((b - a) // 640 for a, b in pieces)


def clock(seconds):
    tenths = round(seconds * 10)
    return f"{tenths // 600:02d}:{tenths % 600 // 10:02d}.{tenths % 10}"


def test_streams_of_other_formats(client, script):
    script(always("[Speaker 1] [0:00] Hello there. [Speaker 2] [0:01] Goodbye."))
    *rest, done = ask(client, stream=True, response_format="diarized_json")
    segments = [one for one in rest if one.type == "transcript.text.segment"]
    assert [(one.id, one.speaker, one.start, one.end, one.text) for one in segments] == [
        ("seg_0", "A", 0.0, 1.0, "Hello there."),
        ("seg_1", "B", 1.0, 2.5, "Goodbye."),
    ]
    assert "".join(one.delta for one in rest if one.type == "transcript.text.delta") == done.text
    script(always(TIMED))
    *_, done = ask(client, stream=True, response_format="verbose_json")
    assert [one["text"] for one in done.segments] == ["Hello there.", "Goodbye now."]
    assert (done.duration, done.usage.type) == (2.5, "tokens")


def events(url, talk, **fields):
    form = {"model": "tiny", "stream": "true"} | fields
    return httpx.post(f"{url}/v1/audio/transcriptions", data=form, files={"file": ("talk.flac", talk)})


def test_how_a_stream_ends(url, server, script, talk, pieces):
    script(always(PLAIN))
    found = events(url, talk)
    assert found.headers["content-type"].startswith("text/event-stream")
    lines = found.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["type"] for line in lines[:-2])

    async def answer(question):
        if question.samples[0] == pieces[1][1] - pieces[1][0]:
            raise RuntimeError("a secret")
        return PLAIN

    script(answer)
    lines = events(url, talk).text.split("\n\n")
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "DONE" not in "".join(lines)
    assert "secret" not in "".join(lines)
    script(raising(ApiError(503, "the engine has died", code="engine_died")))
    assert events(url, talk).status_code == 503


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_goes_ends_its_answers(url, script, talk, stream):
    asked = threading.Event()

    async def answer(question):
        if len(told.asked) == 1:
            return PLAIN
        asked.set()
        return await asyncio.Event().wait()

    told = script(answer)
    form = {"model": "tiny", "stream": stream}
    request = httpx.Request("POST", url, data=form, files={"file": ("talk.flac", talk)})
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/audio/transcriptions", request.read(), dict(request.headers))
    assert asked.wait(30)
    if stream == "true":
        assert connection.getresponse().readline().startswith(b"data: ")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert told.left.wait(30)


@pytest.mark.parametrize(
    ("fields", "param", "problem"),
    [
        ({"colour": "red"}, "colour", "there is no field 'colour' here"),
        ({"response_format": "xml"}, "response_format", "json or text or srt or verbose_json or vtt or diarized_json"),
        ({"language": "qq"}, "language", "qq: no such code"),
        ({"languages[]": ["en", "qq"]}, "languages", "qq: no such code"),
        ({"language": "en", "languages[]": ["de"]}, "languages", "both say what is spoken"),
        ({"temperature": "1.5"}, "temperature", "a number from 0 to 1 is expected, got '1.5'"),
        ({"temperature": "nan"}, "temperature", "a number from 0 to 1 is expected"),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities", "needs response_format verbose_json"),
        (
            {"timestamp_granularities[]": "word", "response_format": "verbose_json"},
            "timestamp_granularities",
            "word times are not supported",
        ),
        ({"stream": "maybe"}, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, "stream", "srt is a whole file"),
        ({"include[]": "everything"}, "include", "logprobs is expected"),
        ({"include[]": "logprobs", "response_format": "text"}, "include", "come with response_format json"),
        ({"chunking_strategy": "often"}, "chunking_strategy", "auto is expected"),
        ({"chunking_strategy[type]": "server_vad"}, "chunking_strategy", "server_vad are not supported"),
        ({"known_speaker_names[]": "Ann"}, "known_speaker_names", "not supported"),
        ({"chunk_seconds": "0.5"}, "chunk_seconds", "a number 1 or more"),
        ({"timestamps": "all"}, "timestamps", "model or grammar"),
        ({"prompt": "<|im_end|>"}, "prompt", "which only the prompt itself may"),
        ({"prompt": "<sound>"}, "prompt", "placeholders"),
        ({"model": "other"}, "model", "there is no model 'other' here"),
        ({"prompt": ["a", "b"]}, "prompt", "prompt is given twice"),
        ({"file": "talk.wav"}, "file", "file must be a recording"),
        ({"file": "afn://sha256/00"}, "file", "must be uploaded again"),
    ],
)
def test_what_is_refused(url, script, fields, param, problem):
    told = script(always(PLAIN))
    files = {} if "file" in fields else {"file": ("a.wav", wav(1.0))}
    boundary = {} if files else {"Content-Type": "multipart/form-data; boundary=x"}
    body = "".join(f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    given = {"data": fields, "files": files} if files else {"content": f"{body}--x--\r\n".encode(), "headers": boundary}
    found = httpx.post(f"{url}/v1/audio/transcriptions", **given)
    assert found.status_code == (404 if param == "model" or "again" in problem else 400)
    error = found.json()["error"]
    assert (error["param"], told.asked) == (param, [])
    assert problem in error["message"]


def test_recordings_that_are_refused(client, url, script, talk):
    script(always(PLAIN))
    for data in (b"", b"nothing that is heard", wav(2.0)[:30]):
        with pytest.raises(openai.APIStatusError) as error:
            ask(client, data)
        assert error.value.status_code in (400, 415, 422)
        assert error.value.param == "file"
    with pytest.raises(openai.APIStatusError) as error:
        ask(client, flac(np.zeros(101 * 8_000), 8_000))
    assert error.value.status_code in (413, 422)
    found = httpx.post(f"{url}/v1/audio/transcriptions", json={"model": "tiny"})
    assert (found.status_code, "multipart/form-data" in found.json()["error"]["message"]) == (400, True)


def test_a_recording_that_was_uploaded(url, server, script):
    told = script(always(PLAIN))
    recording = asyncio.run(server.intake.decode(wav(1.5)))
    server.uploads.add("", recording)
    form = {"model": (None, "tiny"), "file": (None, f"afn://sha256/{recording.id}")}
    found = httpx.post(f"{url}/v1/audio/transcriptions", files=form)
    assert (found.status_code, found.json()["text"]) == (200, PLAIN)
    assert told.asked[0].samples == [24_000]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client says so of all translations
def test_translations(client, script):
    told = script(always(TIMED))
    found = client.audio.translations.create(
        model="tiny", file=("a.wav", wav(2.5)), response_format="verbose_json", extra_body={"language": "fr"}
    )
    assert (found.language, found.text, found.duration) == ("english", PLAIN, 2.5)
    assert found.task == "translate"
    assert [one.end for one in found.segments] == [1.2, 2.0]
    assert client.audio.translations.create(model="tiny", file=("a.wav", wav(2.5)), prompt="Short.").text == TIMED
    assert [(one.text, one.endpoint) for one in told.asked] == [
        ("Translate any speech you hear from French into English.", "translations"),
        ("Translate any speech you hear into English. Short.", "translations"),
    ]
    with pytest.raises(openai.BadRequestError, match="there is no field 'stream'"):
        client.audio.translations.create(model="tiny", file=("a.wav", wav(1.0)), extra_body={"stream": True})


def test_times_by_grammar(client, script, monkeypatch):
    name = "afn_model.infer.time_grammar"
    grammar = SimpleNamespace(timed_transcript_grammar=lambda seconds: f"up to {seconds}")
    monkeypatch.setitem(sys.modules, name, grammar)
    told = script(always(TIMED))
    assert ask(client, response_format="srt", extra_body={"timestamps": "grammar"}).startswith("1\n00:00:00,500")
    ask(client)
    assert [one.params.grammar for one in told.asked] == ["up to 2.5", None]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(openai.BadRequestError, match="grammar is not in this version"):
        ask(client, extra_body={"timestamps": "grammar"})


def test_the_model_hears_the_pieces(client, server, monkeypatch):
    """Its answers about pieces are those about recordings that are no longer."""
    monkeypatch.setattr("afn_model.infer.transcripts.LEAST", 4)
    data = wav(2.5)
    found = ask(client, data, response_format="verbose_json", extra_body={"chunk_seconds": 1})
    pcm = asyncio.run(server.intake.decode(data)).pcm
    spans = cut_samples(pcm, 1.0)

    async def alone(a, b):
        parts = [{"type": "audio", "audio": pcm[a:b]}, {"type": "text", "text": TRANSCRIBE}]
        turns = read_conversation([{"role": "user", "content": parts}])
        params = SamplingParams(max_new_tokens=max(4, math.ceil(6 * (b - a) / 16_000)), logprobs=0)
        async with server.ask(turns, params) as stream:
            (answer,) = await stream.ended()
        return answer.tokens, answer.logprobs

    expected = [asyncio.run(alone(a, b)) for a, b in spans]
    assert len(expected) == 3
    tokens = [token for one in found.segments for token in one.tokens]
    assert tokens == [token for one, _ in expected for token in one if token not in server.processor.stop_ids]
    assert found.segments[0].avg_logprob == sum(expected[0][1]) / len(expected[0][1])
    audio = sum(-(-(b - a) // 640) for a, b in spans)
    assert found.afn["usage"]["input_token_details"]["audio_tokens"] == pytest.approx(audio, abs=len(spans))
