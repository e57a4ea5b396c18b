"""What is written is read again, sample by sample."""

import io

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.encode import MIME, SoundEncoder, flac, wav


@pytest.mark.parametrize("encode", [wav, flac])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_samples_come_back(encode, kind):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 1001, dtype=np.int16)
    found, rate = soundfile.read(io.BytesIO(encode(kind(pcm))), dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(found, pcm)


@pytest.mark.parametrize("form", ["wav", "pcm", "flac", "opus"])
def test_a_file_does_not_depend_on_how_its_sound_came(form):
    sound = torch.from_numpy(0.9 * np.sin(np.arange(30_000) * 0.03).astype(np.float32))

    def made(sizes):
        encoder = SoundEncoder(form, 16_000)
        pieces = [encoder.push(piece) for piece in sound.split(sizes)]
        return pieces, b"".join([*pieces, encoder.finish()])

    pieces, whole = made(1000)
    assert sum(map(len, pieces)) > 0.8 * len(whole)  # it comes while it is made
    for sizes in (333, 30_000):
        found = made(sizes)[1]
        assert len(found) == len(whole)
        if form in ("wav", "pcm"):
            assert found == whole


def test_beyond_full_scale_is_cut_off_and_nothing_is_a_file():
    encoder = SoundEncoder("wav", 8000)
    pcm, rate = soundfile.read(
        io.BytesIO(encoder.push(torch.tensor([2.0, -2.0, 0.5])) + encoder.finish()), dtype="int16"
    )
    assert (pcm.tolist(), rate) == ([32767, -32768, 16384], 8000)
    assert soundfile.info(io.BytesIO(SoundEncoder("wav", 8000).finish())).frames == 0


def test_formats_that_are_none():
    with pytest.raises(ValueError, match=f"there is no format 'midi'; there are {', '.join(MIME)}"):
        SoundEncoder("midi", 16_000)
    with pytest.raises(ValueError, match=r"mp3 is not written here: .*; wav and pcm are"):
        SoundEncoder("mp3", 1000)
