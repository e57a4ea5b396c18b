"""Measured voices: how high, how fast and how loud, on voices whose truth is known, and on tones."""

import numpy as np
import pytest

from afn_model.curate.requests import AnnotationRequest
from afn_model.curate.stand_ins.pitch import FRAME, MeasuredVoice, describe, measure, pitch, words
from afn_model.world.words import Speaker, voice_of
from tests.model.curate.stand_ins.voices_said import SENTENCES, noisy, request, say

CAST = [("m1", 20), ("m4", 33), ("m7", 45), ("Alex", 57), ("f1", 45), ("f3", 57), ("f4", 70), ("Annie", 45)]


@pytest.mark.parametrize("hertz", [70.0, 110.0, 220.0, 390.0])
def test_the_pitch_of_harmonic_tones(hertz):
    at = np.arange(FRAME) / 16_000
    tone = sum(np.sin(2 * np.pi * hertz * k * at) / k for k in range(1, 9))
    noise = np.random.default_rng(0).standard_normal(FRAME)
    found = pitch(np.stack([tone, 0.001 * tone, tone + 0.1 * noise, noise, np.zeros(FRAME)]))
    np.testing.assert_allclose(found[:3], hertz, rtol=0.02)
    assert found[3:].tolist() == [0.0, 0.0]


def test_men_and_women_slow_and_fast():
    named = 0
    for variant, at in CAST:
        slow, fast = (measure(noisy(say(SENTENCES[0], variant, at, rate))) for rate in (100, 280))
        kind = voice_of(Speaker("en-us", variant, 170, at))
        assert kind
        for voice, pace, other in ((slow, "slowly", "fast"), (fast, "fast", "slowly")):
            said = words(voice)
            assert said.startswith("A low voice" if kind == "man" else "A high voice"), (variant, voice)
            assert f" {other} and " not in said, (variant, voice)
            named += f" {pace} and " in said
        assert slow.rate < 0.75 * fast.rate
    assert named >= 0.9 * 2 * len(CAST)


def test_loudness_is_measured_where_somebody_speaks():
    pcm = say(SENTENCES[1], "m3", 40)
    alone, between = measure(pcm), measure(np.concatenate([np.zeros(32_000), pcm, np.zeros(32_000)]))
    assert between.level == pytest.approx(alone.level, abs=0.5)
    assert between.rate == pytest.approx(alone.rate, rel=0.1)
    assert measure(0.1 * pcm).level == pytest.approx(alone.level - 20, abs=0.01)
    assert words(measure(0.1 * pcm)).endswith(" quietly.")
    assert words(MeasuredVoice(0.0, 5.0, -10.0)) == "A whispering voice speaks at a moderate pace and loudly."
    assert words(MeasuredVoice(140.0, 2.0, -20.0)) == "A medium voice speaks slowly and at a normal level."


def test_replies_to_requests(tmp_path):
    pcm = np.concatenate([np.zeros(16_000), say(SENTENCES[0], "f2", 55, 280), np.zeros(20_000)]).astype(np.float32)
    path = tmp_path / "a.wav"
    end = len(pcm) / 16_000
    asked = [request(path, pcm, "voices", *part) for part in ((0.0, 0.9), (0.9, end - 1.0), (0.0, 0.03))]
    lost = request(tmp_path / "b.wav", pcm, "voices")
    (tmp_path / "b.wav").unlink()
    silent, heard, short, error, none = describe([*asked, lost, AnnotationRequest("s", "v", 1, "p", "h", ())])
    assert (silent, short) == ("Nobody speaks here.", "Nobody speaks here.")
    assert heard.startswith("A high voice speaks fast and ")
    assert isinstance(error, (ValueError, OSError))
    assert str(none) == "one recording is expected, got 0"
