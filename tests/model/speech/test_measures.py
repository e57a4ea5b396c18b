"""Measures of sound against sound."""

import pytest
import torch

from afn_model.speech.measures import mel_distance, speaker_similarity
from tests.model.speech.small import sound

RATE = 8000


def test_mel_distance_is_in_decibels():
    pcm = sound(RATE)
    assert mel_distance(pcm, pcm, RATE) == 0
    assert abs(mel_distance(pcm, 0.1 * pcm, RATE) - 20) < 0.05
    assert mel_distance(pcm[0], -pcm[0], RATE) < 1e-5, "phases do not count"


def test_similar_are_voices_of_one_spectrum_whatever_they_say_and_how_loud():
    def voice(seed: int, low: bool) -> torch.Tensor:
        noise = sound(2 * RATE, seed)[0]
        return torch.nn.functional.pad(noise.cumsum(0) if low else noise.diff(), (0, 2000))

    same, other = speaker_similarity(voice(1, True), 0.1 * voice(2, True), RATE), voice(3, False)
    assert same > 0.95
    assert speaker_similarity(voice(1, True), other, RATE) < 0.3


def test_sounds_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"^a distance is of two sounds of one length, got \(3,\) and \(4,\)$"):
        mel_distance(torch.zeros(3), torch.zeros(4), RATE)
    with pytest.raises(ValueError, match=r"^a speaker's sound must be \[n\] samples that are not all zero$"):
        speaker_similarity(torch.zeros(100), sound(100)[0], RATE)
