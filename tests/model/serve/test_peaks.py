"""The outline of a recording against NumPy's."""

import numpy as np
import pytest
import torch

from afn_model.serve.peaks import peaks


@pytest.mark.parametrize("samples", [1, 999, 1000, 16_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_peaks_are_the_extremes_of_each_part(samples, dtype):
    pcm = torch.rand(samples) * 2 - 1
    pcm = (pcm * 32768).to(torch.int16) if dtype == torch.int16 else pcm
    found, loudest = peaks(pcm, 100)
    hop = -(-samples // 100)
    whole = pcm.numpy().astype(np.float64) / (32768 if dtype == torch.int16 else 1)
    parts = [whole[at : at + hop] for at in range(0, samples, hop)]
    assert loudest == np.abs(whole).max()
    wanted = np.array([(part.min(), part.max()) for part in parts]) * 127 / loudest
    assert found.dtype == torch.int8
    assert found.shape == (len(parts), 2)
    assert len(found) <= 100
    outward = np.where(wanted < 0, np.floor(wanted), np.ceil(wanted))
    # A product may be rounded onto a whole number that it only comes near to.
    near = np.abs(wanted - np.round(wanted)) < 1e-4
    np.testing.assert_array_equal(np.where(near, 0, found), np.where(near, 0, outward))
    assert np.abs(found.numpy() - wanted).max() <= 1 + 1e-4


def test_quiet_recordings_have_fine_outlines():
    pcm = torch.linspace(-1, 1, 1000)
    assert torch.equal(peaks(pcm / 1024, 100)[0], peaks(pcm, 100)[0])


def test_peaks_of_little_and_of_what_is_no_sound():
    assert peaks(torch.zeros(0), 10)[0].shape == (0, 2)
    silence, loudest = peaks(torch.zeros(3), 3)
    assert (silence.tolist(), loudest) == ([[0, 0]] * 3, 0.0)
    outline, loudest = peaks(torch.tensor([0.5, -0.25, 0.001]), 10)
    assert (outline.tolist(), loudest) == ([[127, 127], [-64, -64], [1, 1]], 0.5)
    outline, loudest = peaks(torch.tensor([3.0, -3.0, float("nan")]), 3)
    assert (outline.tolist(), loudest) == ([[127, 127], [-127, -127], [0, 0]], 1.0)
    with pytest.raises(ValueError, match="0 parts"):
        peaks(torch.zeros(4), 0)
