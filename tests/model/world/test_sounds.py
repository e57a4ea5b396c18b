"""Sounds: fresh, scaled and audible at once; noise of the slope it is given."""

import numpy as np
import pytest

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.sounds import SOUNDS, sound
from afn_model.world.synthesis import coloured_noise


def draw(name, seed, n=SAMPLE_RATE):
    return sound(name, np.random.default_rng(seed), n)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_fresh_scaled_and_audible_at_once(name):
    for seed in range(50):
        wave = draw(name, seed)
        assert wave.dtype == np.float32
        assert wave.shape == (SAMPLE_RATE,)
        assert np.abs(wave).max() == pytest.approx(1)
        assert np.sqrt(np.mean(wave[:320] ** 2)) > 0.25 * np.sqrt(np.mean(wave**2))
    spectra = [np.abs(np.fft.rfft(draw(name, seed))) for seed in range(6)]
    for i in range(6):
        for j in range(i):
            assert np.corrcoef(spectra[i], spectra[j])[0, 1] < 0.95
    np.testing.assert_array_equal(draw(name, 1), draw(name, 1))
    assert len(draw(name, 2, 800)) == 800


def test_sounds_refuse_what_they_cannot_make():
    with pytest.raises(ValueError, match="unknown sound 'cat'"):
        draw("cat", 0)
    with pytest.raises(ValueError, match="got 100"):
        draw("bell", 0, 100)


@pytest.mark.parametrize("slope", [0, -1, -2])
def test_noise_has_the_slope_it_is_given(slope):
    power = np.abs(np.fft.rfft(coloured_noise(np.random.default_rng(0), 1 << 18, slope=slope))) ** 2
    frequency = np.fft.rfftfreq(1 << 18, 1 / SAMPLE_RATE)
    octaves = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (125, 250, 500, 1000, 2000)]
    assert np.polyfit(range(5), np.log2(octaves), 1)[0] == pytest.approx(slope, abs=0.1)
