"""What is wrong with stated times: one text for each status, and scenes whose silence is known."""

import time

import numpy as np
import pytest
import torch

from afn_model.infer.stated_times import stated_times
from afn_model.infer.time_checks import DIGITAL_SILENCE, STATUSES, Loudness, check_times, sentence_of
from afn_model.world.synthesis import coloured_noise


def scene(seconds, *events, floor=-50.0, level=-20.0, seed=0):
    """White noise at ``floor`` dBFS, with louder noise in the events (start, end)."""
    rng = np.random.default_rng(seed)
    pcm = 10 ** (floor / 20) * rng.standard_normal(round(seconds * 16_000))
    for start, end in events:
        part = slice(round(start * 16_000), round(end * 16_000))
        pcm[part] += 10 ** (level / 20) * rng.standard_normal(len(pcm[part]))
    return pcm.astype(np.float32)


@pytest.fixture(scope="module")
def heard():
    return Loudness(scene(100, (2, 4), (10, 12), (30, 32), (60, 62), (90, 100)))


def statuses(text, *recordings, kind="answer"):
    return [one.status for one in check_times(stated_times(text), text, recordings, kind=kind)]


def test_each_status(heard):
    for text, status in {
        "A bell at 0:03.": "ok",
        "A bell at 100.4 s.": "ok",
        "A bell at 100.6 s.": "past_end",
        "A bell from 0:10 to 1:50.": "past_end",
        "A bell from 0:12 to 0:10.": "reversed",
        "A bell at 0:20.": "silent",
        "A bell from 0:15 to 0:25.": "silent",
        "A bell from 0:15 to 0:31.": "ok",
        "A bell just behind 12.4 s, at 12.45 s.": "ok",
        'He says "a sentence of forty-four characters or so" from 10 s to 11 s.': "rate",
        'He says "a sentence of forty-four characters or so" from 10 s to 12 s.': "ok",
    }.items():
        found = statuses(text, heard)
        assert found[-1] == status, text
        assert status in STATUSES


def test_starts_of_a_transcript_do_not_go_back(heard):
    text = "[0:02 - 0:04] One. [0:10 - 0:12] Two. [0:03 - 0:04] Three. [0:30 - 0:32] Four."
    assert statuses(text, heard, kind="transcript") == ["ok", "ok", "order", "ok"]
    assert statuses(text, heard) == ["ok"] * 4
    said = "[0:02 - 0:04] " + "word " * 11 + "[0:10 - 0:12] Two."
    assert statuses(said, heard, kind="transcript") == ["rate", "ok"]
    cues = "1\n00:00:02,000 --> 00:00:04,000\n" + "x" * 50 + "\n\n22\n00:00:10,000 --> 00:00:12,000\nTwo.\n"
    assert statuses(cues, heard, kind="transcript") == ["ok", "ok"], "50 characters in 2 s, without the next number"
    assert statuses("[0:02] " + "word " * 11 + "[0:10] Two.", heard, kind="transcript") == ["ok", "ok"]


def test_times_that_are_all_on_the_grid_of_windows(heard):
    assert statuses("A bell at 0:30, 1:00 and 1:30.", heard) == ["grid"] * 3
    assert statuses("A bell at 0:30, 1:00 and 1:31.", heard) == ["ok"] * 3
    assert statuses("A bell at 0:30 and 1:00.", heard) == ["ok"] * 2
    assert statuses("A bell at 0:30, 1:00 and 2:00.", heard) == ["grid", "grid", "past_end"]


def test_which_of_several_recordings_is_meant(heard):
    short = Loudness(scene(5, (2, 4)))
    text = "A bell at 0:03. In recording 2 a bell at 0:10, in the first clip a dog at 0:10. Audio 3: a cat at 0:03."
    found = check_times(stated_times(text), text, [heard, short])
    assert [(one.status, one.recording) for one in found] == [
        ("ambiguous", None),
        ("past_end", 1),
        ("ok", 0),
        ("ambiguous", None),
    ]
    assert statuses("A bell at 0:03, at 5:00.", heard, short) == ["ambiguous", "past_end"]
    assert statuses("A bell at 5:00.") == ["ok"], "without a recording nothing is known"


def test_as_json(heard):
    (row,) = (one.to_json() for one in check_times(stated_times("A bell at 0:20."), "A bell at 0:20.", [heard]))
    assert row == {
        "start": 20.0,
        "end": None,
        "text": "0:20",
        "where": "answer",
        "span": [10, 14],
        "status": "silent",
        "recording": 0,
    }


def test_what_is_silent_follows_the_floor_and_not_the_level():
    """Sounds 20 dB above noise whose power falls with the square of frequency; in both dtypes, and at any level."""
    rng = np.random.default_rng(1)
    floor = 0.002 * coloured_noise(rng, 320_000, slope=-2)
    for gain in (1.0, 0.05):
        pcm = floor.astype(np.float64)
        for start in (3, 8, 15):
            pcm[start * 16_000 : start * 16_000 + 8_000] += 0.02 * rng.standard_normal(8_000)
        pcm *= gain
        for samples in (pcm.astype(np.float32), torch.tensor((pcm * 32767 * 4).round(), dtype=torch.int16)):
            found = Loudness(samples)
            assert [found.is_silent(at - 0.5, at + 0.5) for at in (3.2, 8.4, 15.0)] == [False] * 3
            assert [found.is_silent(at, at + 1.0) for at in (1, 5, 6, 11, 17)] == [True] * 5


def test_music_without_pauses_has_no_silence():
    """Notes that decay, a quiet verse 15 dB below the chorus, and noise alone: there is no floor to be below."""
    t, rng = np.arange(40 * 16_000) / 16_000, np.random.default_rng(2)
    notes = np.exp(-3 * (t % 0.5)) * np.sin(2 * np.pi * 220 * 2 ** ((t // 0.5 % 7) / 12) * t)
    verse = np.where((t // 10) % 2 == 0, 0.05, 0.05 * 10 ** (15 / 20)) * notes
    for pcm in (0.3 * notes, verse, 0.1 * rng.standard_normal(len(t))):
        found = Loudness(pcm.astype(np.float32))
        assert not any(found.is_silent(at, at + 1.0) for at in range(39))
    cut = verse.copy()
    cut[5 * 16_000 : 7 * 16_000] = 0
    found = Loudness(cut.astype(np.float32))
    assert [found.is_silent(at, at + 1.0) for at in (4, 5.2, 8)] == [False, True, False]


@pytest.mark.parametrize("samples", [0, 1, 319, 320, 700, 1600])
def test_recordings_that_are_short_or_silent(samples):
    found = Loudness(np.zeros(samples, np.int16))
    assert found.threshold == DIGITAL_SILENCE
    assert found.is_silent(0, 1) == (samples > 0)
    assert not found.is_silent(samples / 16_000 + 1, samples / 16_000 + 2)
    assert statuses("At 0:00.", found) == ["silent" if samples else "ok"]


def test_levels_are_below_full_scale():
    """0 dB is full scale in both dtypes, to the step of int16: 20 log10(1 + 2^-15) dB."""
    step = 20 * np.log10(1 + 2**-15)
    assert Loudness(np.ones(3200, np.float32)).levels == pytest.approx(0, abs=step)
    assert Loudness(np.full(3200, 32767, np.int16)).levels == pytest.approx(0, abs=2 * step)
    assert Loudness(np.full(100, -16384, np.int16)).levels == pytest.approx(20 * np.log10(0.5), abs=step)


def test_samples_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"\[n\] samples of float32 or int16 are expected, got float64 \[3\]"):
        Loudness(np.zeros(3))


def test_sentences():
    text = "<think>One at 3.5 s. Two at 0:04! Three\nFour at 0:05 (loud). Five."
    spans = [sentence_of(text, one.span) for one in stated_times(text)]
    assert [text[slice(*span)] for span in spans] == ["One at 3.5 s.", "Two at 0:04!", "Four at 0:05 (loud)."]


def test_long_texts_take_time_in_their_length():
    for piece in (" ", "\n1 ", "<a ", '"', "([-", "clip 1 ", "a."):
        text = f"[0:02] a{piece * (100_000 // len(piece))}b [0:10 - 0:11] c"
        began = time.process_time()
        for kind in ("transcript", "answer"):
            check_times(stated_times(text), text, [Loudness(scene(20))], kind=kind)
        assert time.process_time() - began < 2, piece


def test_half_an_hour_is_looked_at_once_and_then_at_once():
    pcm = scene(30, (3, 5), (20, 21))
    whole = Loudness(np.tile((pcm * 32767).astype(np.int16), 60))
    text = "\n".join(
        f"[{at // 60}:{at % 60:02d} - {(at + 5) // 60}:{(at + 5) % 60:02d}] word" for at in range(0, 1795, 5)
    )
    times, took = stated_times(text), []
    for _ in range(5):
        began = time.process_time()
        found = check_times(times, text, [whole], kind="transcript")
        took.append(time.process_time() - began)
    assert len(found) == 359
    assert {one.status for one in found} == {"ok", "silent"}
    assert min(took) < 0.03
