"""A recording in any form that data sets and people have it in."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afn_model.audio.recording import Audio, load, measured_seconds
from bench.odd_recordings import odd_files
from bench.recordings import ladder, sound_file

SAMPLES = ladder(2)[:, 0]
WAV = sound_file(ladder(2), 16_000, "WAV", "FLOAT")


def test_every_form_gives_the_same_samples(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    used = io.BytesIO(WAV)
    used.read()
    decoded = SimpleNamespace(data=torch.from_numpy(SAMPLES)[None].expand(2, -1), sample_rate=16_000)
    forms = [
        SAMPLES,
        torch.from_numpy(SAMPLES),
        SAMPLES.tolist(),
        tuple(SAMPLES.tolist()),
        (SAMPLES, 16_000),
        (SAMPLES.tolist(), 16_000.0),
        {"array": SAMPLES, "sampling_rate": 16_000},
        {"path": "gone.wav", "array": SAMPLES, "sampling_rate": 16_000.0},
        {"array": SAMPLES.tolist(), "sampling_rate": np.float64(16_000)},
        {"bytes": WAV},
        {"bytes": WAV, "path": "gone.wav"},
        {"bytes": None, "path": str(path)},
        {"path": path},
        {"audio": {"array": SAMPLES, "sampling_rate": 16_000}},
        SimpleNamespace(get_all_samples=lambda: decoded),
        WAV,
        bytearray(WAV),
        memoryview(WAV),
        used,
        path,
        str(path),
    ]
    for form in forms:
        assert torch.equal(load(Audio(form)), torch.from_numpy(SAMPLES)), form


def test_a_rate_and_a_part_come_from_the_dict_and_what_is_said_outside_wins():
    audio = Audio({"array": SAMPLES, "sampling_rate": 8_000.0, "start": 1.0, "end": 3.0})
    assert (audio.sampling_rate, audio.start, audio.end) == (8_000, 1.0, 3.0)
    assert isinstance(audio.sampling_rate, int)
    assert load(audio).numel() == 32_000
    assert Audio({"array": SAMPLES, "sampling_rate": 8_000}, sampling_rate=16_000).sampling_rate == 16_000


def test_a_float_rate_that_is_whole_is_a_rate():
    assert Audio(SAMPLES, 44_100.0).sampling_rate == 44_100
    assert load(Audio(SAMPLES, 44_100.0)).numel() == load(Audio(SAMPLES, 44_100)).numel()


@pytest.mark.parametrize(
    ("source", "rate", "problem"),
    [
        ({"sampling_rate": 16_000}, None, r"needs 'array', 'bytes' or 'path', got \['sampling_rate'\]"),
        ({"bytes": None, "path": None}, None, "needs 'array', 'bytes' or 'path'"),
        (3, None, "must be a path, bytes, an open file or an array, got 3"),
        (["a.wav", "b.wav"], None, "must be a path, bytes"),
        ([], None, "must be a path, bytes"),
        (SAMPLES, 44_100.5, "must be whole, got 44100.5"),
        (SAMPLES, float("nan"), "must be above 0, got nan"),
        (SAMPLES, float("inf"), "must be whole, got inf"),
        ({"array": SAMPLES, "sampling_rate": "16k"}, None, "must be a number, got '16k'"),
    ],
)
def test_what_is_no_recording(source, rate, problem):
    with pytest.raises(ValueError, match=problem) as error:
        Audio(source, rate)
    assert "\n" not in str(error.value)


def test_whole_numbers_in_a_list_have_no_scale():
    with pytest.raises(ValueError, match="floating point, int16 or int32"):
        load(Audio([0, 1, 2] * 1000))


def test_durations_are_measured(tmp_path):
    for name, odd in odd_files().items():
        if not name.startswith(("mp3 joined", "vorbis, two", "wav, sizes", "webm", "m4a of")):
            continue
        path = tmp_path / "odd"
        path.write_bytes(odd.data)
        assert measured_seconds(Audio(str(path))) == pytest.approx(odd.seconds, abs=odd.slack), name
        assert measured_seconds(Audio(path, start=1.0, end=2.5)) == 1.5
    with pytest.raises(ValueError, match=r"odd: start 99 s is outside the recording of \d\.\d+ s"):
        measured_seconds(Audio(str(path), start=99))


def test_an_empty_recording_is_said_to_be_empty(tmp_path):
    path = tmp_path / "empty.wav"
    path.write_bytes(sound_file(ladder(0), 16_000, "WAV"))
    for ask in (
        lambda: measured_seconds(Audio(str(path))),
        lambda: load(Audio(path)),
        lambda: load(Audio(path, end=1.0)),
    ):
        with pytest.raises(ValueError, match=r"empty\.wav: the recording is empty"):
            ask()
    (tmp_path / "text.wav").write_text("not audio " * 20)
    with pytest.raises(ValueError, match=r"text\.wav: not audio"):
        measured_seconds(Audio(str(tmp_path / "text.wav")))
    with pytest.raises(ValueError, match=r"absent\.wav: no such file"):
        measured_seconds(Audio(str(tmp_path / "absent.wav")))
