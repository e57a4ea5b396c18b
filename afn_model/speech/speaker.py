"""Whose voice speaks: a few seconds of a person who agreed to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afn_model.audio.resample import resample
from afn_model.checks import shown
from afn_model.speech.codec import Codec

LEAST_SECONDS = 1.0
SILENCE = 1e-3  # peak, -60 dBFS


@dataclass(frozen=True)
class SpeakerPrompt:
    """Frames of a voice.

    Args:
        codes: [P, levels] int64.
        consent: who agreed that the voice is used, and to what: kept beside what is said with it.
    """

    codes: Tensor
    consent: str

    def __post_init__(self):
        if not isinstance(self.consent, str) or not self.consent.strip():
            raise ValueError("a speaker prompt needs its speaker's consent: say in `consent` who agreed, and to what")
        if self.codes.ndim != 2 or not len(self.codes):
            raise ValueError(f"a speaker prompt's codes must be [frames, levels], got {list(self.codes.shape)}")


def speaker_prompt(codec: Codec, pcm: Tensor, rate: int, *, consent: str, seconds: float = 6.0) -> SpeakerPrompt:
    """The prompt of a recording, of its first seconds.

    Args:
        codec: of the voice.
        pcm: [n] float samples, in [-1, 1].
        rate: Hz.
        consent: see ``SpeakerPrompt``.
        seconds: of the recording at most.

    Raises:
        ValueError: one line: no consent, another shape, below 1 s, silent, or not finite.
    """
    if not isinstance(pcm, Tensor) or pcm.ndim != 1:
        raise ValueError(
            f"a speaker prompt must be samples [n] of one channel, got {shown(getattr(pcm, 'shape', pcm))}"
        )
    pcm = pcm.float().cpu()[: int(seconds * rate)]
    if len(pcm) < LEAST_SECONDS * rate:
        raise ValueError(f"a speaker prompt of {len(pcm) / rate:.2f} s: at least {LEAST_SECONDS:g} s are needed")
    if not pcm.isfinite().all():
        raise ValueError("a speaker prompt with samples that are not finite")
    if pcm.abs().max() < SILENCE:
        raise ValueError("a speaker prompt that is silent")
    SpeakerPrompt(torch.zeros(1, 1), consent)  # refuses a consent that is none before the work
    pcm = torch.cat(list(resample([pcm], rate, codec.config.sample_rate)))
    with torch.no_grad():
        codes = codec.codes(pcm[None].to(codec.quantizer.codebooks.device))[0]
    return SpeakerPrompt(codes, consent)
