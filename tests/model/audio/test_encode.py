"""What is written is read again, sample by sample."""

import io

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.encode import flac, wav


@pytest.mark.parametrize("encode", [wav, flac])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_samples_come_back(encode, kind):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 1001, dtype=np.int16)
    found, rate = soundfile.read(io.BytesIO(encode(kind(pcm))), dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(found, pcm)
