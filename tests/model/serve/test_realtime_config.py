"""What a session is told."""

import pytest

from afn_model.serve.errors import ApiError
from afn_model.serve.realtime_config import SessionConfig, TurnDetection

INPUT = "session.audio.input"


def heard(**fields):
    return {"audio": {"input": fields}}


def test_what_is_not_named_stays():
    turns = {"type": "server_vad", "threshold": 0.25, "silence_duration_ms": 900}
    first = SessionConfig().updated(heard(turn_detection=turns, transcription={"language": "German"}), "tiny")
    assert first.turn_detection == TurnDetection(0.25, 300, 900)
    second = first.updated(heard(format={"type": "audio/pcm", "rate": 16_000}) | {"interim_ms": 500}, "tiny")
    assert second == SessionConfig(16_000, TurnDetection(0.25, 300, 900), "German", interim_ms=500)
    assert second.asked() == "Transcribe the input speech. The language is German."
    said = {"prompt": "Names: Ann.", "language": None}
    third = second.updated(heard(turn_detection=None, transcription=said), "tiny")
    assert third.asked() == "Transcribe the input speech. Names: Ann."
    assert third.turn_detection is None
    assert third.shown("sess_1", "tiny")["audio"]["input"]["turn_detection"] is None
    assert third.updated(third.shown("sess_1", "tiny"), "tiny") == third  # what is shown can be sent back


def test_the_older_flat_session():
    flat = {"input_audio_format": "pcm16", "turn_detection": None, "input_audio_transcription": {"prompt": "x"}}
    assert SessionConfig(16_000).updated(flat, "tiny") == SessionConfig(24_000, None, prompt="x")


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ([], "session"),
        ({"audio": None}, "session.audio"),
        ({"interim_ms": True}, "session.interim_ms"),
        ({"interim_ms": 100}, "session.interim_ms"),
        ({"include": ["item.input_audio_transcription.logprobs"]}, "session.include"),
        (heard(format={"type": "audio/pcm", "rate": 8000}), f"{INPUT}.format.rate"),
        (heard(format={"type": "audio/pcm", "rate": [16_000]}), f"{INPUT}.format.rate"),
        (heard(turn_detection={"threshold": float("nan")}), f"{INPUT}.turn_detection.threshold"),
        (heard(turn_detection={"silence_duration_ms": 1e9}), f"{INPUT}.turn_detection.silence_duration_ms"),
        (heard(transcription={"model": ["x"]}), f"{INPUT}.transcription.model"),
        (heard(transcription={"prompt": 1}), f"{INPUT}.transcription.prompt"),
        (heard(transcription={"keywords": []}), f"{INPUT}.transcription.keywords"),
    ],
)
def test_what_is_wrong_is_named(session, param):
    with pytest.raises(ApiError) as found:
        SessionConfig().updated(session, "tiny")
    assert found.value.param == param
