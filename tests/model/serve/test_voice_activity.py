"""Turns by loudness."""

import numpy as np
import pytest

from afn_model.serve.voice_activity import VoiceActivity

RATE = 16_000


def tone(seconds, decibels):
    """A square wave, whose level is its height."""
    wave = np.where(np.arange(round(seconds * RATE)) % 80 < 40, 1, -1)
    return np.round(wave * 32768 * 10 ** (decibels / 20)).astype(np.int16)


def turns(pcm, cuts=(), **changes):
    settings = {"threshold": 0.5, "prefix_padding_ms": 100, "silence_duration_ms": 200} | changes
    voice = VoiceActivity(RATE, **settings)
    return [tuple(turn) for piece in np.split(pcm, cuts) for turn in voice.feed(piece)]


def test_a_turn_and_its_padding():
    pcm = np.concatenate([tone(1, -90), tone(1, -30), tone(1, -90)])
    expected = [("started", 16_000 - 1600), ("stopped", 32_000 + 3200)]
    assert turns(pcm) == expected
    assert turns(pcm, range(1, len(pcm), 777)) == expected
    assert turns(pcm, threshold=0.5, prefix_padding_ms=5000)[0] == ("started", 0)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_threshold_is_a_level(threshold):
    level = -60 + 40 * threshold
    assert len(turns(tone(1, level + 0.5), threshold=threshold)) == 1
    assert not turns(tone(1, level - 0.5), threshold=threshold)


def test_a_click_is_no_turn_and_a_short_pause_ends_none():
    click = np.concatenate([tone(1, -90), tone(0.04, -10), tone(1, -90)])
    assert not turns(click)
    paused = np.concatenate([tone(0.5, -30), tone(0.18, -90), tone(0.5, -30), tone(0.5, -90)])
    assert [what for what, _ in turns(paused)] == ["started", "stopped"]


def test_turns_do_not_overlap():
    pcm = np.concatenate([tone(0.5, -30), tone(0.24, -90), tone(0.5, -30), tone(1, -90)])
    first, second = turns(pcm, prefix_padding_ms=300)[1:3]
    assert first == ("stopped", round(0.7 * RATE))
    assert second == ("started", first[1])
    voice = VoiceActivity(RATE, 0.5, 300, 200)
    assert [turn.what for turn in voice.feed(tone(0.5, -30))] == ["started"]
    voice.stop(round(0.5 * RATE))
    assert voice.feed(tone(0.5, -30)) == [("started", round(0.5 * RATE))]
