"""The causal STFT and its inverse."""

import torch

from afn_model.speech.spectrum import istft, stft
from tests.model.speech.small import sound


def test_the_inverse_gives_back_what_the_transform_was_of():
    pcm = sound(480, batch=2)
    made, rest = istft(stft(pcm, 32, 8), 8)
    assert torch.allclose(torch.cat([made, rest], 1)[:, 24:-24], pcm[:, :-24], atol=1e-6)
    # What the last 24 samples lack is in the frames that follow.
    made, _ = istft(stft(torch.nn.functional.pad(pcm, (0, 24)), 32, 8), 8)
    assert torch.allclose(made[:, 24:], pcm, atol=1e-6)


def test_frames_are_those_of_the_formula():
    pcm = sound(40)
    bins, padded = stft(pcm, 16, 4), torch.cat([torch.zeros(12), pcm[0]])
    window = torch.hann_window(16)
    for f in range(10):
        own = torch.fft.rfft(padded[4 * f : 4 * f + 16] * window) / window.sum()
        assert torch.allclose(bins[0, f], own, atol=1e-6)
    sine = torch.sin(torch.arange(400) * 2 * torch.pi / 8)[None]
    assert abs(stft(sine, 16, 4)[0, 50, 2].abs() - 0.5) < 1e-3


def test_the_samples_before_come_from_the_state():
    pcm = sound(80)
    whole = stft(pcm, 16, 4)
    assert torch.allclose(stft(pcm[:, 40:], 16, 4, before=pcm[:, 28:40]), whole[:, 10:], atol=1e-7)
    made, state = istft(whole[:, :7], 4)
    more, _ = istft(whole[:, 7:], 4, state)
    assert torch.allclose(torch.cat([made, more], 1), istft(whole, 4)[0], atol=1e-6)
    assert stft(pcm[:, :0], 16, 4).shape == (1, 0, 9)
