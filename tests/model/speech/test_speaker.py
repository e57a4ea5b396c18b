import math

import pytest
import torch

from afn_model.speech.speaker import SpeakerPrompt, speaker_prompt
from tests.model.speech.tiny import CODEC, tiny_voice

WHO = "the tests' author, for these tests"


def hum(seconds: float, rate: int) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * 150 / rate * torch.arange(int(seconds * rate)))


def test_a_recording_at_another_rate_is_coded_at_the_codecs():
    codec = tiny_voice().codec
    prompt = speaker_prompt(codec, hum(1.25, 16_000), 16_000, consent=WHO)
    assert prompt.codes.shape == (1.25 * CODEC.frame_rate, CODEC.levels)
    assert prompt.consent == WHO
    assert torch.equal(
        speaker_prompt(codec, hum(9, 8_000), 8_000, consent=WHO, seconds=1).codes, codec.codes(hum(1, 8_000)[None])[0]
    )


@pytest.mark.parametrize(
    ("pcm", "consent", "said"),
    [
        (hum(0.99, 8_000), WHO, r"of 0.99 s: at least 1 s"),
        (torch.zeros(9_000), WHO, "silent"),
        (hum(2, 8_000) * 1e-4, WHO, "silent"),
        (torch.full((9_000,), float("nan")), WHO, "not finite"),
        (torch.ones(2, 9_000), WHO, r"samples \[n\] of one channel"),
        ([0.1], WHO, r"samples \[n\] of one channel"),
        (hum(2, 8_000), " ", "needs its speaker's consent"),
        (hum(2, 8_000), None, "needs its speaker's consent"),
    ],
)
def test_prompts_that_are_of_no_use_are_refused_in_one_line(pcm, consent, said):
    with pytest.raises(ValueError, match=said) as found:
        speaker_prompt(tiny_voice().codec, pcm, 8_000, consent=consent)
    assert "\n" not in str(found.value)


def test_codes_without_a_frame_are_no_prompt():
    with pytest.raises(ValueError, match=r"\[frames, levels\], got \[0, 4\]"):
        SpeakerPrompt(torch.zeros(0, 4, dtype=torch.long), WHO)
