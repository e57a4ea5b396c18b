"""Pictures of log-mel features, read back by Pillow."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import afn_kernels as ak
from afn_model.audio.frames import WINDOW
from afn_model.serve.spectrogram import ANCHORS, HIGH, LOW, palette, png, spectrogram, window_mel
from tests.tiny import noise


def indices(picture: bytes) -> np.ndarray:
    """[rows, columns] of a PNG: which of the palette's colours."""
    with Image.open(io.BytesIO(picture)) as image:
        assert image.mode == "P"
        assert bytes(image.getpalette()) == palette()
        return np.array(image)


def test_colours_grow_brighter():
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    assert colours[[0, -1]].tolist() == [[*ANCHORS[0]], [*ANCHORS[-1]]]
    assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) >= 0).all()


def test_a_picture_is_what_it_was_made_of():
    values = torch.randint(0, 256, (7, 13), dtype=torch.uint8)
    picture = png(values)
    np.testing.assert_array_equal(indices(picture), values.numpy())
    assert picture[-8:-4] == b"IEND"
    assert int.from_bytes(picture[-4:], "big") == zlib.crc32(b"IEND")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_a_window_is_drawn_as_the_model_hears_it(dtype):
    pcm = torch.from_numpy(noise(31.003)).float()
    pcm = (pcm * 32767).to(torch.int16) if dtype == torch.int16 else pcm
    padded = torch.zeros(1, WINDOW, dtype=dtype)
    padded[0, : len(pcm) - WINDOW] = pcm[WINDOW:]
    mel = ak.log_mel(padded)[0, :, :101]
    assert torch.equal(window_mel(pcm, 1), mel)
    coarse = window_mel(pcm, 1, 300)
    assert coarse.shape == (128, 11)
    assert torch.equal(coarse[:, 3], mel[:, 30:40].amax(1))
    found = LOW + indices(spectrogram(pcm, 1))[::-1] * (HIGH - LOW) / 255  # low frequencies are at the bottom
    step = (HIGH - LOW) / 255
    assert np.abs(found - mel.clamp(LOW, HIGH).numpy()).max() <= step / 2 + 1e-6


def test_what_is_not_there():
    pcm = torch.zeros(WINDOW + 5)
    assert window_mel(pcm, 1).shape == (128, 1)
    for window in (-1, 2):
        with pytest.raises(ValueError, match=f"there is no window {window}; this recording has 2"):
            spectrogram(pcm, window)
    with pytest.raises(ValueError, match="columns=7, not one of"):
        spectrogram(pcm, 0, 7)
    assert indices(spectrogram(torch.full((400,), float("nan")), 0)).max() == 0
