"""Chat completions in sound, as OpenAI's own client reads them."""

import base64
import io
import json
import wave

import httpx
import numpy as np
import openai
import pytest

from afn_model.serve.speaking import SpeechThread
from tests.model.serve.serving import running, tiny_server, wav
from tests.model.speech.tones import AFTER, FRAME, STEP, tone_prompt, tones
from tests.tiny import tiny

RATE = 16_000
TOKENS = tiny()[1].tokenizer
DOG = TOKENS.token_to_id("Ġdog") or TOKENS.encode("dog").ids[0]
FORCED = {"logit_bias": {str(DOG): 100}, "temperature": 0, "max_completion_tokens": 6}
IN_SOUND = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
LOOSE = {"ignore_eos": True, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def server():
    return tiny_server(voice=SpeechThread(tones(TOKENS, RATE), tone_prompt, places=4))


@pytest.fixture(scope="module")
def address(server):
    with running(server) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as found:
        yield found.chat.completions


def ask(client, *messages, **options):
    said = messages or [{"role": "user", "content": "What barks?"}]
    return client.create(**{"model": "tiny", "messages": said, "extra_body": LOOSE} | FORCED | IN_SOUND | options)


def samples(data):
    """Of the sound in a wav file without a length: its tokens, one for each frame."""
    assert data[:4] == b"RIFF"
    pcm = np.frombuffer(data[44:], dtype="<i2") / 32768
    assert len(pcm) % FRAME == 0
    return pcm[::FRAME]


def spoken(count):
    return pytest.approx([DOG / 1000] * count + [-0.5] * AFTER, abs=1e-4)


def test_whole_and_gone_on_from(server, address, client):
    reply = ask(client)
    message = reply.choices[0].message
    assert (message.content, message.audio.transcript.split()) == (None, ["dog"] * 6)
    assert samples(base64.b64decode(message.audio.data)) == spoken(6)
    with wave.open(io.BytesIO(base64.b64decode(message.audio.data))) as file:
        assert file.getnframes() == (6 + AFTER) * FRAME
    assert message.audio.expires_at > reply.created
    assert reply.usage.completion_tokens_details.audio_tokens == 6 + AFTER
    assert 0 <= reply.afn["speech"]["after_token"] <= reply.afn["speech"]["after_question"] + 1e-9
    text = [{"role": "user", "content": "What barks?"}, {"role": "assistant", "content": message.audio.transcript}]
    then = {"role": "user", "content": "And then?"}
    told = ask(client, *text, then, modalities=["text"], audio=openai.NOT_GIVEN)
    bare = {"role": "assistant", "audio": {"id": message.audio.id}}
    for earlier in (bare, bare | {"content": ""}, message):  # the second is what the deltas of a stream add up to
        assert ask(client, text[0], earlier, then).usage.prompt_tokens == told.usage.prompt_tokens
    counts = [
        httpx.post(f"{address}/tokenize", json={"messages": [text[0], earlier]}).json()["count"]
        for earlier in (text[1], bare)
    ]
    assert counts[0] == counts[1]
    with pytest.raises(openai.NotFoundError, match="send its text as content") as refused:
        ask(client, text[0], {"role": "assistant", "audio": {"id": "audio_0"}}, then)
    assert refused.value.param == "messages[1].audio"


def test_streamed_as_it_is_made(server, client):
    chunks = list(ask(client, stream=True, audio={"voice": "default", "format": "pcm16"}))
    deltas = [one.delta.model_dump().get("audio") for chunk in chunks for one in chunk.choices]
    sounds = [one for one in deltas if one]
    assert len({one["id"] for one in sounds}) == 1
    assert "".join(one.get("transcript") or "" for one in sounds).split() == ["dog"] * 6
    pcm = np.frombuffer(b"".join(base64.b64decode(one.get("data") or "") for one in sounds), dtype="<i2")
    assert len(pcm) == (6 + AFTER) * FRAME * 24_000 // RATE
    assert sounds[-1]["expires_at"] > chunks[-1].created
    assert chunks[-1].choices[0].finish_reason == "length"
    times = chunks[-1].afn["speech"]
    assert times["audio"] == (6 + AFTER) * FRAME / RATE
    assert max(times["after_token"], times["longest_gap"]) <= STEP + 1e-9
    assert not any(one.delta.content for chunk in chunks for one in chunk.choices)


def test_who_thinks_does_not_say_it_and_who_says_nothing_is_silent(client):
    thinking = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "<think>"}]
    for messages in (thinking, ()):
        options = {} if messages else {"logit_bias": {str(TOKENS.encode(".").ids[0]): 100}}
        reply = ask(client, *messages, **options)
        assert len(base64.b64decode(reply.choices[0].message.audio.data)) <= 44
        assert reply.usage.completion_tokens_details.audio_tokens == 0


def test_a_voice_of_a_recording(server, client):
    clip = f"data:audio/wav;base64,{base64.b64encode(wav(1.5)).decode()}"
    voice = {"audio": clip, "consent": "Ann, 1 May 2026"}
    ask(client, audio={"voice": voice, "format": "wav"})
    assert server.voice.engine.engine.all[-1].speaker.consent == voice["consent"]


def test_who_leaves_a_stream_leaves_nothing(server, address):
    asked = {"messages": [{"role": "user", "content": "-"}], "stream": True, "max_tokens": 400} | LOOSE | IN_SOUND
    asked["logit_bias"] = FORCED["logit_bias"]
    for lines in (1, 2, 5):
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=asked, timeout=60) as reply:
            for _, line in zip(range(lines), reply.iter_lines(), strict=False):
                assert line == "" or json.loads(line.removeprefix("data: "))["choices"]
    for _ in range(3000):
        if not (server.voice.streams or server.thread.engine.scheduler.running() or server.limits.requests):
            break
        httpx.get(f"{address}/health").raise_for_status()
    assert (server.voice.streams, server.voice.engine.engine.streams, server.limits.requests) == ({}, [], 0)
    assert server.thread.engine.scheduler.running() == 0


CLIP = {"audio": "-", "consent": "Ann"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"audio": None}, "audio", "{voice, format}"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio.voice", "there is 'default'"),
        ({"audio": {"voice": "default", "format": "ogg"}}, "audio.format", "'wav', 'aac'"),
        (
            {"audio": {"voice": CLIP | {"consent": " "}, "format": "wav"}},
            "audio.voice.consent",
            "who has agreed",
        ),
        ({"audio": {"voice": CLIP, "format": "wav"}}, "audio.voice.audio", "begin with"),
        ({"n": 2, "temperature": 1}, "n", "not with an answer in sound"),
        ({"stop": "x"}, "stop", "not with an answer in sound"),
        ({"afn_caption": True}, "afn_caption", "not with an answer in sound"),
        ({"messages": [{"role": "user", "audio": {"id": "x"}}]}, "messages[0]", "of a message of the assistant"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]", "content is missing"),
    ],
)
def test_what_is_refused(server, address, fields, param, words):
    body = {"messages": [{"role": "user", "content": "-"}]} | IN_SOUND | fields
    reply = httpx.post(f"{address}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert not server.voice.streams
