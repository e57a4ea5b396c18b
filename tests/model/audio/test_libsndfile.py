"""Formats of laboratories, samplers and telephones that FFmpeg does not read, or takes for others."""

import pytest

from afn_model.audio.decode import audio_seconds, load_audio
from afn_model.audio.libsndfile import SoundFileAudio
from afn_model.audio.source import read_source
from bench.recordings import heard, ladder, sound_file

# A decoder for another codec gives 13 dB of signal to noise at best, the right one 25 dB or more.
OTHERS = (
    ("AVR", "PCM_16"),
    ("HTK", "PCM_16"),
    ("MAT4", "DOUBLE"),
    ("MAT5", "FLOAT"),
    ("PVF", "PCM_32"),
    ("AIFF", "DWVW_16"),
    ("AU", "G721_32"),
    ("AU", "G723_24"),
    ("WAV", "G721_32"),
    ("WAV", "NMS_ADPCM_32"),
)


@pytest.mark.parametrize(("container", "codec"), OTHERS)
def test_they_are_read_by_libsndfile(container, codec):
    rate = 8_000 if codec.startswith(("G72", "NMS")) else 16_000
    data = sound_file(ladder(3, rate), rate, container, codec)
    pcm = load_audio(data)
    assert abs(pcm.numel() - 48_000) <= 400  # whole blocks of a codec
    assert heard(pcm) == [0, 1, 2]
    assert audio_seconds(read_source(data)) == pytest.approx(3, abs=0.05)
    expected = load_audio(sound_file(ladder(3, rate), rate, "WAV", "FLOAT"))
    noise = pcm[1_600:47_000] - expected[1_600:47_000]  # these codecs take a moment to adapt
    assert float(noise.pow(2).mean() / expected.pow(2).mean()) < 10 ** (-20 / 10)


def test_a_part_of_one(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(sound_file(ladder(5), 16_000, "MAT5", "FLOAT"))
    assert heard(load_audio(path, start=3, end=5)) == [3, 4]
    with pytest.raises(ValueError, match=r"outside the recording of 5\.000 s"):
        load_audio(path, start=7)


def test_what_it_does_not_read_is_said_in_one_line():
    with pytest.raises(ValueError, match="Format not recognised"):
        SoundFileAudio(b"nothing of the kind" * 10)
