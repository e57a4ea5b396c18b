"""A session without its wire: what is told when the client commits a turn, and when nothing can be answered."""

import asyncio
import base64
import json

import numpy as np
import pytest

from afn_model.audio.frames import audio_tokens
from afn_model.serve.realtime_session import BEHIND, LiveItem, RealtimeSession
from tests.model.serve.serving import tiny_server
from tests.tiny import noise


def append(pcm):
    audio = base64.b64encode((pcm * 32767).astype("<i2").tobytes()).decode()
    return json.dumps({"type": "input_audio_buffer.append", "audio": audio})


COMMIT = json.dumps({"type": "input_audio_buffer.commit"})
MANUAL = json.dumps({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})


def told_by(talk, **settings):
    """The events of a session in which the client does what ``talk`` does."""
    server, told = tiny_server(max_new_tokens=8, **settings), []

    async def send(event):
        told.append(event)

    async def talked():
        await server.start()
        session = RealtimeSession(server, send)
        try:
            await talk(server, session)
            await asyncio.gather(*session.answers)
        finally:
            await session.close()
            await server.stop()

    asyncio.run(talked())
    assert not any(window.references for window in server.thread.engine.audio._windows.values())
    return server, told


def test_a_turn_that_the_client_commits():
    """The next one begins where it ended, while the voice goes on."""

    async def talk(server, session):
        await session.handle(append(noise(1.0, 1, 24_000)))
        await session.handle(COMMIT)
        await session.handle(append(noise(1.0, 2, 24_000)))
        await session.handle(append(np.zeros(24_000)))

    _, told = told_by(talk)
    kinds = [event["type"].rsplit(".", 1)[1] for event in told if "transcription" not in event["type"]]
    item = ["committed", "created"]
    assert kinds == ["speech_started", *item, "speech_started", "speech_stopped", *item]
    starts = [event["audio_start_ms"] for event in told if event["type"].endswith("speech_started")]
    assert starts == [0, 1000]
    (stop,) = [event["audio_end_ms"] for event in told if event["type"].endswith("speech_stopped")]
    assert stop == 2500
    usage = [event["usage"] for event in told if event["type"].endswith("completed")]
    assert [one["input_token_details"]["audio_tokens"] for one in usage] == [audio_tokens(16_000), audio_tokens(24_000)]


def test_there_is_no_room():
    async def talk(server, session):
        await session.handle(MANUAL)
        await session.handle(append(noise(30.5, 1, 24_000)))
        with server.limits.admitted(client="another"):
            await session.handle(COMMIT)
            await asyncio.gather(*session.answers)

    server, told = told_by(talk, max_requests=1)
    failed = told[-1]
    assert failed["type"] == "conversation.item.input_audio_transcription.failed"
    assert set(failed) == {"type", "event_id", "item_id", "content_index", "error"}
    assert (failed["error"]["type"], failed["error"]["code"]) == ("rate_limit_error", "queue_full")
    assert 'afn:realtime_items_total{model_name="tiny",status="failed"} 1.0' in server.metrics.text().decode()


def test_a_recording_too_long_for_the_model():
    async def talk(server, session):
        await session.handle(MANUAL)
        server.thread.engine.pool.pages = 2
        await session.handle(append(noise(10.0, 1, 24_000)))
        await session.handle(COMMIT)

    _, told = told_by(talk)
    assert told[-1]["type"].endswith("failed")
    assert "pages" in told[-1]["error"]["message"]


def test_the_engine_dies():
    async def talk(server, session):
        await session.handle(MANUAL)
        await session.handle(append(noise(0.5, 1, 24_000)))
        await asyncio.to_thread(server.thread.stop)
        await session.handle(COMMIT)

    _, told = told_by(talk)
    assert told[-1]["type"].endswith("failed")
    assert (told[-1]["error"]["type"], told[-1]["error"]["code"]) == ("server_error", "engine_died")


def test_nothing_is_read_while_the_engine_is_behind(monkeypatch):
    """Of a full window, until no more than ``BEHIND`` wait; what is cleared then is not held."""
    waiting = [BEHIND + 2, BEHIND + 1, BEHIND, 0]
    monkeypatch.setattr(LiveItem, "behind", lambda item, engine: waiting.pop(0))

    async def talk(server, session):
        await session.handle(MANUAL)
        await session.handle(append(noise(30.5, 1, 24_000)))
        await session.handle(json.dumps({"type": "input_audio_buffer.clear"}))

    told_by(talk)
    assert waiting == [0]


def test_the_token_that_ends_an_answer_is_not_counted():
    async def talk(server, session):
        server.thread.engine.model.lm_head.weight.data.zero_()  # of equal scores the first wins: <|endoftext|>
        await session.handle(MANUAL)
        await session.handle(append(noise(0.2, 1, 24_000)))
        await session.handle(COMMIT)

    _, told = told_by(talk)
    assert told[-1]["type"].endswith("completed")
    assert told[-1]["usage"]["output_tokens"] == 0


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_too_little_to_commit_is_kept(seconds):
    async def talk(server, session):
        await session.handle(MANUAL)
        await session.handle(append(noise(seconds, 1, 24_000)))
        await session.handle(COMMIT)
        await session.handle(append(noise(0.2, 1, 24_000)))
        await session.handle(COMMIT)

    _, told = told_by(talk)
    assert told[1]["error"]["code"] == "input_audio_buffer_commit_empty"
    assert told[-1]["type"].endswith("completed")
    assert told[-1]["usage"]["input_token_details"]["audio_tokens"] == 5
